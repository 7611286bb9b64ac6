//! What decisions about users and channels need to know: of whom they are, and the time it is.

use aggregate::{Aggregate, ContextProvider};
use async_trait::async_trait;
use store::{BoxError, Clock, Timestamp};

use crate::channel::{Channel, ChannelCommand, ChannelContext};
use crate::ids::{ChannelId, UserId};
use crate::user::{User, UserCommand, UserContext};

/// An aggregate of this id, now: each decision asks the log's clock anew.
#[derive(Clone, Debug)]
pub struct Now<Id> {
    id: Id,
    clock: Clock,
    fixed: Option<Timestamp>,
}

impl<Id> Now<Id> {
    /// By this clock.
    pub fn new(id: Id, clock: Clock) -> Self {
        Self { id, clock, fixed: None }
    }

    /// At this instant, if one is given, whatever the clock shows.
    #[must_use]
    pub fn at(self, fixed: Option<Timestamp>) -> Self {
        Self { fixed, ..self }
    }

    async fn now(&self) -> Result<Timestamp, BoxError> {
        match self.fixed {
            Some(instant) => Ok(instant),
            None => Ok(self.clock.now().await?),
        }
    }
}

#[async_trait]
impl ContextProvider<User> for Now<UserId> {
    async fn provide(&self, _: &UserCommand) -> Result<UserContext, BoxError> {
        Ok(UserContext { user_id: self.id.clone(), now: self.now().await? })
    }
}

#[async_trait]
impl ContextProvider<Channel> for Now<ChannelId> {
    async fn provide(&self, _: &ChannelCommand) -> Result<<Channel as Aggregate>::Context, BoxError> {
        Ok(ChannelContext { channel_id: self.id.clone(), now: self.now().await? })
    }
}
