//! What a small program does right after each of its appends, before whoever appended is answered.
//!
//! A hook is told of an append and cannot wait for anything; a follow-up is waited for, and can undo nothing: the
//! append is durable by then, and succeeds whatever becomes of what follows. Appends in a lent transaction have none,
//! since nobody knows yet whether they will be committed.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use crate::append::Appended;
use crate::store::Store;

/// Work that takes its time.
pub type Following<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Follows each append of one handle of the log.
pub trait FollowUp: Send + Sync {
    /// Follows an append that is durable now. It must not append through the handle that it follows.
    fn follow(&self, appended: Appended) -> Following<'_>;
}

/// The follow-up of a handle.
#[derive(Clone)]
pub(crate) struct Follower(pub(crate) Arc<dyn FollowUp>);

impl Store {
    /// A handle to the same log each of whose appends ([`Store::append`]) is followed by this, in place of an earlier one.
    #[must_use]
    pub fn with_follow_up(mut self, follow_up: Arc<dyn FollowUp>) -> Self {
        self.plugins_mut().follower = Some(Follower(follow_up));
        self
    }

    pub(crate) async fn follow_up(&self, appended: Appended) {
        if let Some(Follower(follow_up)) = &self.plugins().follower {
            follow_up.follow(appended).await;
        }
    }
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Follower")
    }
}
