//! Whatever the checks of the log take as JSON can be stored: it is JSON, not too deep, without NUL or half a pair of
//! surrogates after unescaping. No database.
//!
//! ```text
//! cd crates/store
//! RUSTC_BOOTSTRAP=1 cargo fuzz run checked fuzz/corpus/hostile -s none -- -max_total_time=180
//! RUSTC_BOOTSTRAP=1 cargo fuzz run stored fuzz/corpus/hostile -s none -- -max_total_time=180
//! ```
#![no_main]

use libfuzzer_sys::fuzz_target;
use testkit::{Hostile, why_not_storable};

fuzz_target!(|bytes: &[u8]| {
    let input = Hostile::from_bytes(bytes);
    let Ok((stream, event)) = input.event() else { return };
    assert!(!stream.as_str().is_empty() && stream.as_str().len() <= 255);
    assert!(!stream.as_str().chars().any(|c| c.is_control()));
    for (taken, written) in [(&event.payload, &input.payload), (&event.metadata, &input.metadata)] {
        assert_eq!(taken.as_str(), written);
        assert_eq!(why_not_storable(written), None);
    }
});
