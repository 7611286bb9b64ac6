//! Tests of an aggregate without a database: given these events, when this command, then those events or a refusal.
//!
//! The decision is held to the same rules as in a [`crate::Repository`].

use std::fmt::Debug;

use store::{StreamName, Version};

use crate::decision::{Decided, Loaded, decide};
use crate::error::ExecuteError;
use crate::{Aggregate, EventSet};

/// An aggregate to which something has happened.
pub struct Given<A: Aggregate>(Loaded<A::State>);

/// What a command came to.
pub struct When<A: Aggregate> {
    before: Loaded<A::State>,
    result: Result<Decided<A::Event>, ExecuteError<A::Refusal>>,
}

/// An aggregate to which this has happened, and nothing else.
pub fn given<A: Aggregate>(past: impl IntoIterator<Item = A::Event>) -> Given<A> {
    Given(happened::<A>(Loaded { state: A::State::default(), last: None }, past))
}

fn happened<A: Aggregate>(
    loaded: Loaded<A::State>,
    events: impl IntoIterator<Item = A::Event>,
) -> Loaded<A::State> {
    events.into_iter().fold(loaded, |Loaded { state, last }, event| Loaded {
        state: A::evolve(state, &event),
        last: Some(last.map_or(Version(0), |last| Version(last.0 + 1))),
    })
}

impl<A: Aggregate> Given<A> {
    /// Decides on a command.
    pub fn when(self, command: &A::Command, context: &A::Context) -> When<A> {
        let stream = StreamName::new(format!("{}-given", A::CATEGORY.unwrap_or("given")));
        let stream = stream.expect("a category and a word make a name");
        let result = decide::<A>(&stream, &self.0, command, context);
        When { before: self.0, result }
    }

    /// The state.
    pub fn state(&self) -> &A::State {
        &self.0.state
    }
}

impl<A: Aggregate> When<A>
where
    A::Event: EventSet + PartialEq + Debug,
{
    /// Exactly these events follow, none included. Answers with the aggregate to which they have happened.
    ///
    /// # Panics
    ///
    /// If anything else follows.
    #[track_caller]
    pub fn then(self, expected: impl IntoIterator<Item = A::Event>) -> Given<A> {
        let expected: Vec<A::Event> = expected.into_iter().collect();
        match self.result {
            Ok((events, _)) => {
                assert_eq!(events, expected, "other events follow than expected");
                Given(happened::<A>(self.before, events))
            }
            Err(error) => panic!("refused: {error}; expected {expected:?}"),
        }
    }

    /// Nothing happens, and that is a success.
    ///
    /// # Panics
    ///
    /// If anything happens, or the command is refused.
    #[track_caller]
    pub fn then_nothing(self) -> Given<A> {
        self.then([])
    }

    /// It is refused, with this error.
    ///
    /// # Panics
    ///
    /// If it is not.
    #[track_caller]
    pub fn then_refused(self) -> ExecuteError<A::Refusal> {
        match self.result {
            Ok((events, _)) => panic!("not refused; what follows is {events:?}"),
            Err(error) => error,
        }
    }
}

impl<A: Aggregate> Debug for Given<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Given").field("last", &self.0.last).finish_non_exhaustive()
    }
}

impl<A: Aggregate> Debug for When<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("When").field("is_refused", &self.result.is_err()).finish_non_exhaustive()
    }
}
