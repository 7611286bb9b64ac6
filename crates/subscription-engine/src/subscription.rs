//! Subscriptions: how far a subscriber has read, in which state, and the one function that changes it.
//!
//! ```text
//!                  new ──setup──▶ booting ──at the head──▶ active ◀──reactivate── finished
//!                                    └──────at the head (once)──────────────────────▲
//!   new, booting, active ──a failure──▶ error ──retry, reactivate──▶ what it was
//!   booting, active, error ──pause──▶ paused ──reactivate──▶ what it was
//!   every state ──its subscriber is gone──▶ detached ──reactivate──▶ what it was (active if finished)
//!   booting, active, paused ──put elsewhere──▶ the same          error ──put elsewhere──▶ what it was
//! ```
//!
//! `docs/states.md` shows every single step; a test compares it with the function.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use store::{Event, Position, TableName, Timestamp, messages};

use crate::definition_record::DefinitionRecord;
use crate::poison::Letters;
use crate::subscriber::RunMode;

/// The seven statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Known, but not set up yet.
    New,
    /// Catching up with history.
    Booting,
    /// Following the log.
    Active,
    /// Stopped by a person.
    Paused,
    /// At the end of what it was to do once.
    Finished,
    /// Its subscriber is not in the program any more.
    Detached,
    /// Stopped by a failure; retried if a next retry time is set.
    Error,
}

/// What a subscription that is paused, detached or in error goes on as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resume {
    /// It was not set up yet.
    New,
    /// It was catching up.
    Booting,
    /// It was following the log.
    Active,
    /// It was done.
    Finished,
}

/// The state of a subscription, with what belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// See [`Status::New`].
    New,
    /// See [`Status::Booting`].
    Booting,
    /// See [`Status::Active`].
    Active,
    /// See [`Status::Finished`].
    Finished,
    /// See [`Status::Paused`].
    Paused {
        /// What it goes on as.
        resume: Resume,
    },
    /// See [`Status::Detached`].
    Detached {
        /// What it goes on as.
        resume: Resume,
    },
    /// See [`Status::Error`].
    Error {
        /// What it goes on as.
        resume: Resume,
        /// What went wrong.
        failure: Failure,
        /// When it is tried again; none: it gave up.
        next_retry: Option<Timestamp>,
    },
}

/// What went wrong, where and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The messages, outermost first.
    pub chain: Vec<String>,
    /// The event at which it failed.
    pub event: Option<FailedEvent>,
    /// When, by the log's clock.
    pub at: Timestamp,
}

/// The event at which a subscription failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedEvent {
    /// Its position.
    pub position: Position,
    /// Its id.
    pub id: uuid::Uuid,
    /// Its type.
    pub event_type: String,
    /// Its stream.
    pub stream: String,
}

/// What can happen to a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// Its set-up is done; from-now subscriptions, and whoever asks for it, skip booting.
    SetUp {
        /// Goes straight to Active.
        skip_booting: bool,
    },
    /// It has reached the head; a once subscription is finished there.
    ReachHead {
        /// It is to run once.
        once: bool,
    },
    /// It failed.
    Fail {
        /// What went wrong.
        failure: Failure,
        /// When to try again; none gives up.
        next_retry: Option<Timestamp>,
    },
    /// Its time to try again has come.
    Retry,
    /// A person stops it.
    Pause,
    /// A person sets it going again.
    Reactivate,
    /// Its subscriber is gone.
    Detach,
    /// A person puts it somewhere else.
    Place,
}

/// The transition is not possible from this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a subscription that is {from} {cannot}")]
pub struct Impossible {
    /// Where it is.
    pub from: Status,
    cannot: &'static str,
}

/// The next state. Everyone who wants to change a state calls this.
pub fn next(state: &State, transition: Transition) -> Result<State, Impossible> {
    use State::{Active, Booting, Detached, Error, Finished, New, Paused};
    Ok(match (state, transition) {
        (New, Transition::SetUp { skip_booting: false }) => Booting,
        (New, Transition::SetUp { skip_booting: true }) => Active,
        (Booting | Active, Transition::ReachHead { once: true }) => Finished,
        (Booting, Transition::ReachHead { once: false }) => Active,
        (New | Booting | Active, Transition::Fail { failure, next_retry }) => {
            Error { resume: state.resume(), failure, next_retry }
        }
        (Error { resume, next_retry: Some(_), .. }, Transition::Retry) => resume.state(),
        (Booting | Active | Error { .. }, Transition::Pause) => Paused { resume: state.resume() },
        (Finished, Transition::Reactivate) => Active,
        (Detached { resume: Resume::Finished }, Transition::Reactivate) => Active,
        (Error { resume, .. } | Paused { resume } | Detached { resume }, Transition::Reactivate) => {
            resume.state()
        }
        (New | Booting | Active | Paused { .. } | Finished | Error { .. }, Transition::Detach) => {
            Detached { resume: state.resume() }
        }
        (Booting | Active | Paused { resume: Resume::Booting | Resume::Active }, Transition::Place) => {
            state.clone()
        }
        (Error { resume: resume @ (Resume::Booting | Resume::Active), .. }, Transition::Place) => {
            resume.state()
        }
        (_, transition) => return Err(Impossible { from: state.status(), cannot: transition.cannot() }),
    })
}

impl Transition {
    fn cannot(&self) -> &'static str {
        match self {
            Self::SetUp { .. } => "is set up already",
            Self::ReachHead { .. } => "cannot catch up",
            Self::Fail { .. } => "does no work that could fail",
            Self::Retry => "is not to be retried",
            Self::Pause => "cannot be paused",
            Self::Reactivate => "needs no reactivation",
            Self::Detach => "is detached already",
            Self::Place => "cannot be put somewhere else",
        }
    }
}

impl State {
    /// The status of this state.
    pub fn status(&self) -> Status {
        match self {
            Self::New => Status::New,
            Self::Booting => Status::Booting,
            Self::Active => Status::Active,
            Self::Finished => Status::Finished,
            Self::Paused { .. } => Status::Paused,
            Self::Detached { .. } => Status::Detached,
            Self::Error { .. } => Status::Error,
        }
    }

    /// What it goes on as once it leaves this state for one that does no work.
    pub fn resume(&self) -> Resume {
        match self {
            Self::New => Resume::New,
            Self::Booting => Resume::Booting,
            Self::Active => Resume::Active,
            Self::Finished => Resume::Finished,
            Self::Paused { resume } | Self::Detached { resume } | Self::Error { resume, .. } => *resume,
        }
    }
}

impl Resume {
    fn state(self) -> State {
        match self {
            Self::New => State::New,
            Self::Booting => State::Booting,
            Self::Active => State::Active,
            Self::Finished => State::Finished,
        }
    }
}

/// The stored row of one subscriber id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// The subscriber's id.
    pub id: String,
    /// The program whose code it is.
    pub program: String,
    /// Its group.
    pub group: String,
    /// Where it begins, and whether it ends.
    pub run_mode: RunMode,
    /// Its state.
    pub state: State,
    /// Everything up to here is handled; none before the first event.
    pub position: Option<Position>,
    /// How often the failing position has been tried again.
    pub attempt: u32,
    /// Where it failed, until it is past that.
    pub failing_position: Option<Position>,
    /// When it first failed there.
    pub failing_since: Option<Timestamp>,
    /// How many dead letters it has.
    pub letters: Letters,
    /// The tables to drop with it.
    pub clean_up: Vec<TableName>,
    /// What it was set up as; none if that was not written down.
    pub definition: Option<DefinitionRecord>,
    /// When it came into being.
    pub created_at: Timestamp,
    /// When its state last changed.
    pub changed_at: Timestamp,
    /// The next instant at which one of its timers may fire.
    pub next_timer: Option<Timestamp>,
    /// It was set back from here: what stands up to here comes once more, and everything after it for the first time.
    pub history_to: Option<Position>,
}

impl Subscription {
    /// Where it reads on: after this position.
    pub fn read_from(&self) -> Position {
        self.position.unwrap_or(Position::START)
    }

    /// Whether an event at this position only tells it what has happened: it plans, emits and changes nothing because
    /// of it. One that was set back knows how far that goes; for one that boots for the first time it is all of booting.
    pub(crate) fn is_history(&self, position: Position) -> bool {
        match self.history_to {
            Some(to) => position <= to,
            None => self.state.resume() == Resume::Booting,
        }
    }

    /// The row of a projector that is about to be set back: what it has handled so far is history from now on.
    pub(crate) fn with_history(self) -> Self {
        let history_to = match self.state.resume() {
            // It has never done anything but read history, and that goes on up to the head.
            Resume::New | Resume::Booting if self.history_to.is_none() => None,
            _ => self.history_to.max(Some(self.read_from())),
        };
        Self { history_to, ..self }
    }

    /// The row as it is after its position moved: past the failing position the count of attempts is over.
    pub(crate) fn moved_to(&self, to: Position) -> Self {
        let moved = Self { position: Some(to), ..self.clone() };
        match self.failing_position {
            Some(failing) if failing > to => moved,
            _ => moved.without_attempts(),
        }
    }

    /// The row with nothing tried yet.
    pub(crate) fn without_attempts(self) -> Self {
        Self { attempt: 0, failing_position: None, failing_since: None, ..self }
    }
}

impl From<&Event> for FailedEvent {
    fn from(event: &Event) -> Self {
        Self {
            position: event.position,
            // Of a part of one, the id under which people find it.
            id: event.stored_id(),
            event_type: event.event_type.clone(),
            stream: event.stream.to_string(),
        }
    }
}

impl Failure {
    /// Takes the chain of messages out of an error.
    pub(crate) fn new(
        error: &(dyn std::error::Error + 'static),
        event: Option<&Event>,
        at: Timestamp,
    ) -> Self {
        Self { chain: messages(error), event: event.map(FailedEvent::from), at }
    }

    /// The outermost message.
    pub fn message(&self) -> &str {
        self.chain.first().map_or("", String::as_str)
    }
}

macro_rules! words {
    ($type:ty { $($variant:ident = $word:literal),+ }) => {
        impl $type {
            /// The word for it, in rows, on the command line and in logs.
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.word())
            }
        }

        impl FromStr for $type {
            type Err = UnknownWord;

            fn from_str(word: &str) -> Result<Self, UnknownWord> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownWord(word.to_owned())),
                }
            }
        }
    };
}

/// A word that stands for nothing we know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown word {0:?}")]
pub struct UnknownWord(String);

words!(Status {
    New = "new", Booting = "booting", Active = "active", Paused = "paused", Finished = "finished",
    Detached = "detached", Error = "error"
});
words!(Resume { New = "new", Booting = "booting", Active = "active", Finished = "finished" });
words!(RunMode { FromBeginning = "from_beginning", FromNow = "from_now", Once = "once" });

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Failure {
        Failure { chain: vec!["no".into()], event: None, at: Timestamp::from_micros(0) }
    }

    /// E-04: every state there is, and what each transition makes of it. `-` is a typed error.
    #[test]
    fn e04_every_state_and_transition() {
        let retrying =
            |resume| State::Error { resume, failure: failure(), next_retry: Some(Timestamp::from_micros(1)) };
        let gave_up = |resume| State::Error { resume, failure: failure(), next_retry: None };
        let paused = |resume| State::Paused { resume };
        let detached = |resume| State::Detached { resume };
        use Resume as R;
        // set up, set up (skip), head, head (once), fail, retry, pause, reactivate, detach, place
        let table: &[(State, [&str; 10])] = &[
            (State::New, ["booting", "active", "-", "-", "error", "-", "-", "-", "detached", "-"]),
            (
                State::Booting,
                ["-", "-", "active", "finished", "error", "-", "paused", "-", "detached", "booting"],
            ),
            (State::Active, ["-", "-", "-", "finished", "error", "-", "paused", "-", "detached", "active"]),
            (State::Finished, ["-", "-", "-", "-", "-", "-", "-", "active", "detached", "-"]),
            (paused(R::Booting), ["-", "-", "-", "-", "-", "-", "-", "booting", "detached", "paused"]),
            (paused(R::Active), ["-", "-", "-", "-", "-", "-", "-", "active", "detached", "paused"]),
            (paused(R::New), ["-", "-", "-", "-", "-", "-", "-", "new", "detached", "-"]),
            (retrying(R::New), ["-", "-", "-", "-", "-", "new", "paused", "new", "detached", "-"]),
            (
                retrying(R::Booting),
                ["-", "-", "-", "-", "-", "booting", "paused", "booting", "detached", "booting"],
            ),
            (
                retrying(R::Active),
                ["-", "-", "-", "-", "-", "active", "paused", "active", "detached", "active"],
            ),
            (gave_up(R::Active), ["-", "-", "-", "-", "-", "-", "paused", "active", "detached", "active"]),
            (detached(R::New), ["-", "-", "-", "-", "-", "-", "-", "new", "-", "-"]),
            (detached(R::Booting), ["-", "-", "-", "-", "-", "-", "-", "booting", "-", "-"]),
            (detached(R::Active), ["-", "-", "-", "-", "-", "-", "-", "active", "-", "-"]),
            (detached(R::Finished), ["-", "-", "-", "-", "-", "-", "-", "active", "-", "-"]),
        ];
        for (state, expected) in table {
            let transitions = [
                Transition::SetUp { skip_booting: false },
                Transition::SetUp { skip_booting: true },
                Transition::ReachHead { once: false },
                Transition::ReachHead { once: true },
                Transition::Fail { failure: failure(), next_retry: None },
                Transition::Retry,
                Transition::Pause,
                Transition::Reactivate,
                Transition::Detach,
                Transition::Place,
            ];
            for (transition, expected) in transitions.into_iter().zip(expected) {
                let result = next(state, transition.clone());
                let word = result.as_ref().map_or("-", |state| state.status().word());
                assert_eq!(word, *expected, "{state:?} {transition:?}");
                // E-10: what it goes on as survives every state that does no work.
                if let Ok(
                    State::Paused { resume } | State::Detached { resume } | State::Error { resume, .. },
                ) = result
                {
                    assert_eq!(resume, state.resume());
                }
            }
        }
    }

    #[test]
    fn an_impossible_transition_says_why() {
        let error = next(&State::Finished, Transition::Pause).unwrap_err();
        assert_eq!(error.to_string(), "a subscription that is finished cannot be paused");
    }
}
