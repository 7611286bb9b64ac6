//! Other people's code inside ours: a panic in it is an error of it, and ends nothing else.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Whatever went wrong in code that is not the store's.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What a panic said.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

/// Runs code of which only the result is used: what it may have left half done nobody looks at again.
pub(crate) fn guarded<T>(work: impl FnOnce() -> Result<T, BoxError>) -> Result<T, BoxError> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| Err(format!("it panicked: {}", panic_message(&*panic)).into()))
}
