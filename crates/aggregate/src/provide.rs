//! Context providers: what a decision needs to know besides the past, read before it is made.

use async_trait::async_trait;
use store::BoxError;

use crate::Aggregate;

/// Reads what a command's decision needs to know: the time, a price, a policy. All reading is done here, so that the
/// decision itself is pure.
///
/// It is asked with the command, once the stream is loaded, and again whenever the decision is made anew because
/// somebody else appended meanwhile.
#[async_trait]
pub trait ContextProvider<A: Aggregate>: Send + Sync {
    /// The context of this command.
    async fn provide(&self, command: &A::Command) -> Result<A::Context, BoxError>;
}

/// Where the context of a command comes from.
pub(crate) enum Provide<'a, A: Aggregate> {
    /// It is there.
    Given(&'a A::Context),
    /// Somebody looks it up.
    By(&'a dyn ContextProvider<A>),
}
