//! The states of an effect, and the one function that changes them.
//!
//! ```text
//!   pending ──start──▶ sending ──▶ done, failed
//!      ▲                  │ not now, in doubt (resend)      in doubt (hold)
//!      ├──────────────────┘                     └───────────────────────▶ held
//!   pending ──not wanted──▶ unwanted      failed, pending ──retry──▶ pending (due now)
//!   pending ──hold, subscription removed──▶ held ──release──▶ pending (due now)
//!   pending, held, failed ──discard──▶ discarded
//! ```

use std::fmt;
use std::str::FromStr;

use store::Timestamp;
use uuid::Uuid;

use crate::effects::Effect;

/// The statuses of an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EffectStatus {
    /// To be sent.
    Pending,
    /// An attempt is under way, or was when its process died.
    Sending,
    /// An operator decides.
    Held,
    /// The receiver has it.
    Done,
    /// The receiver refused it, or its retries are used up.
    Failed,
    /// Nobody needed it any more.
    Unwanted,
    /// An operator gave it up.
    Discarded,
}

/// Why an effect is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hold {
    /// Nobody knows whether it arrived.
    InDoubt,
    /// Its subscription was removed.
    Removed,
    /// An operator held it.
    Operator,
}

/// An attempt under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// Known only to whoever makes the attempt.
    pub claim: Uuid,
    /// The worker that makes it.
    pub by: Uuid,
    /// Since when, by the database's clock.
    pub since: Timestamp,
    /// Until when nobody else may have it, by the database's clock.
    pub until: Timestamp,
}

/// The state of an effect, with what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectState {
    /// See [`EffectStatus::Pending`].
    Pending,
    /// See [`EffectStatus::Sending`].
    Sending {
        /// Who makes the attempt.
        sending: Sending,
        /// It is held if this attempt does not end it.
        hold: Option<Hold>,
    },
    /// See [`EffectStatus::Held`].
    Held {
        /// Why.
        hold: Hold,
    },
    /// See [`EffectStatus::Done`].
    Done,
    /// See [`EffectStatus::Failed`].
    Failed,
    /// See [`EffectStatus::Unwanted`].
    Unwanted,
    /// See [`EffectStatus::Discarded`].
    Discarded,
}

/// A row of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EffectRecord {
    /// Its number in the ledger; later ones have greater numbers.
    pub number: i64,
    /// What is to be done.
    pub effect: Effect,
    /// Its state.
    pub state: EffectState,
    /// Not sent before this, by the log's clock.
    pub due_at: Timestamp,
    /// Tries that count against its retries.
    pub failures: u32,
    /// What was last said of it.
    pub why: String,
    /// When it last changed.
    pub changed_at: Timestamp,
    pub(crate) revision: i64,
}

/// What can happen to the state of an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// An attempt begins.
    Start(Sending),
    /// It is to be tried again.
    Defer,
    /// The receiver has it; it may say so late.
    Finish,
    /// It will not arrive.
    Fail,
    /// Nobody needs it.
    Drop,
    /// Nobody knows whether it arrived, and an operator is to decide.
    Doubt,
    /// It is held.
    Hold(Hold),
    /// An operator lets it go on.
    Release,
    /// An operator has it tried at once.
    Retry,
    /// An operator gives it up.
    Discard,
}

/// The step is not possible from this state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an effect that is {from} {cannot}")]
pub struct ImpossibleStep {
    /// Where it is.
    pub from: EffectStatus,
    cannot: &'static str,
}

/// The next state. Everyone who wants to change a state calls this.
pub(crate) fn next(state: EffectState, step: Step) -> Result<EffectState, ImpossibleStep> {
    use EffectState::{Discarded, Done, Failed, Held, Pending, Sending, Unwanted};
    Ok(match (state, step) {
        (Pending, Step::Start(sending)) => Sending { sending, hold: None },
        (Pending | Sending { hold: None, .. }, Step::Defer) => Pending,
        (Sending { hold: Some(hold), .. }, Step::Defer) => Held { hold },
        (Pending | Sending { .. } | Held { .. }, Step::Finish) => Done,
        (Pending | Sending { .. }, Step::Fail) => Failed,
        (Pending, Step::Drop) => Unwanted,
        (Sending { .. }, Step::Doubt) => Held { hold: Hold::InDoubt },
        (Pending, Step::Hold(hold)) => Held { hold },
        (Sending { sending, .. }, Step::Hold(hold)) => Sending { sending, hold: Some(hold) },
        (Held { .. }, Step::Release) | (Pending | Failed, Step::Retry) => Pending,
        (Sending { sending, hold: Some(Hold::Operator) }, Step::Release) => Sending { sending, hold: None },
        (Pending | Held { .. } | Failed, Step::Discard) => Discarded,
        (state, step) => return Err(ImpossibleStep { from: state.status(), cannot: step.cannot() }),
    })
}

impl Step {
    fn cannot(self) -> &'static str {
        match self {
            Self::Start(_) => "cannot be sent",
            Self::Defer | Self::Finish | Self::Fail | Self::Drop | Self::Doubt => "awaits no answer",
            Self::Hold(_) => "cannot be held",
            Self::Release => "is not held",
            Self::Retry => "cannot be retried",
            Self::Discard => "cannot be discarded",
        }
    }
}

impl EffectState {
    /// The status of this state.
    pub fn status(&self) -> EffectStatus {
        match self {
            Self::Pending => EffectStatus::Pending,
            Self::Sending { .. } => EffectStatus::Sending,
            Self::Held { .. } => EffectStatus::Held,
            Self::Done => EffectStatus::Done,
            Self::Failed => EffectStatus::Failed,
            Self::Unwanted => EffectStatus::Unwanted,
            Self::Discarded => EffectStatus::Discarded,
        }
    }
}

impl EffectStatus {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Pending, Self::Sending, Self::Held, Self::Done, Self::Failed, Self::Unwanted, Self::Discarded];

    /// The word for it, in rows and on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Sending => "sending",
            Self::Held => "held",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Unwanted => "unwanted",
            Self::Discarded => "discarded",
        }
    }
}

impl fmt::Display for EffectStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl FromStr for EffectStatus {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::word).join(", ");
        Self::ALL
            .into_iter()
            .find(|status| status.word() == word)
            .ok_or_else(|| format!("{word:?} is no state of an effect; there are {}", known()))
    }
}

impl Hold {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::InDoubt => "in_doubt",
            Self::Removed => "removed",
            Self::Operator => "operator",
        }
    }

    pub(crate) fn of_word(word: &str) -> Option<Self> {
        [Self::InDoubt, Self::Removed, Self::Operator].into_iter().find(|hold| hold.word() == word)
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InDoubt => "in doubt",
            Self::Removed => "its subscription was removed",
            Self::Operator => "held by hand",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e50_the_state_machine_of_an_effect() {
        use EffectState::{Discarded, Done, Failed, Held, Pending, Unwanted};
        let at = Timestamp::from_micros(0);
        let sending = Sending { claim: Uuid::nil(), by: Uuid::nil(), since: at, until: at };
        let under_way = |hold| EffectState::Sending { sending, hold };
        let steps = [
            Step::Start(sending),
            Step::Defer,
            Step::Finish,
            Step::Fail,
            Step::Drop,
            Step::Doubt,
            Step::Hold(Hold::Operator),
            Step::Release,
            Step::Retry,
            Step::Discard,
        ];
        let held = Held { hold: Hold::InDoubt };
        let table = [
            //                  start      defer      finish  fail      drop        doubt   hold       release    retry      discard
            (
                Pending,
                [
                    "sending",
                    "pending",
                    "done",
                    "failed",
                    "unwanted",
                    "-",
                    "held",
                    "-",
                    "pending",
                    "discarded",
                ],
            ),
            (under_way(None), ["-", "pending", "done", "failed", "-", "held", "sending", "-", "-", "-"]),
            (
                under_way(Some(Hold::Removed)),
                ["-", "held", "done", "failed", "-", "held", "sending", "-", "-", "-"],
            ),
            (
                under_way(Some(Hold::Operator)),
                ["-", "held", "done", "failed", "-", "held", "sending", "sending", "-", "-"],
            ),
            (held, ["-", "-", "done", "-", "-", "-", "-", "pending", "-", "discarded"]),
            (Done, ["-"; 10]),
            (Failed, ["-", "-", "-", "-", "-", "-", "-", "-", "pending", "discarded"]),
            (Unwanted, ["-"; 10]),
            (Discarded, ["-"; 10]),
        ];
        for (state, expected) in table {
            for (step, expected) in steps.into_iter().zip(expected) {
                let word = next(state, step).map_or("-", |state| state.status().word());
                assert_eq!(word, expected, "{state:?} {step:?}");
            }
        }
    }
}
