//! One decision, held to the rules of its command. The repository, handlers and tests all decide here.

use store::{NewEvent, StreamName, Version};

use crate::error::ExecuteError;
use crate::rules::Needs;
use crate::{Aggregate, EventSet};

/// An aggregate as it was read.
pub(crate) struct Loaded<S> {
    pub(crate) state: S,
    /// The version of the last event in it.
    pub(crate) last: Option<Version>,
}

/// What a decision came to: the events, and how the log takes them.
pub(crate) type Decided<E> = (Vec<E>, Vec<NewEvent>);

/// Refuses a stream that is not of this aggregate.
pub(crate) fn check_stream<A: Aggregate>(
    stream: &StreamName,
    command: &A::Command,
) -> Result<(), ExecuteError<A::Refusal>> {
    match A::CATEGORY {
        Some(category) if stream.category() != category => Err(ExecuteError::WrongStream {
            command: A::rules(command).shown(),
            stream: stream.clone(),
            category,
        }),
        _ => Ok(()),
    }
}

/// Decides on a command.
pub(crate) fn decide<A: Aggregate>(
    stream: &StreamName,
    loaded: &Loaded<A::State>,
    command: &A::Command,
    context: &A::Context,
) -> Result<Decided<A::Event>, ExecuteError<A::Refusal>> {
    let rules = A::rules(command);
    match (rules.needs, loaded.last) {
        (Needs::NewStream, Some(_)) => {
            return Err(ExecuteError::AlreadyExists { command: rules.shown(), stream: stream.clone() });
        }
        (Needs::Existing, None) => {
            return Err(ExecuteError::NotFound { command: rules.shown(), stream: stream.clone() });
        }
        _ => {}
    }
    let events = A::decide(&loaded.state, command, context).map_err(ExecuteError::Refused)?;
    let new = events.iter().map(EventSet::encode).collect::<Result<Vec<_>, _>>()?;
    let is_allowed =
        |new: &NewEvent| rules.may_record.is_none_or(|types| types.contains(&new.event_type.as_str()));
    if let Some(wrong) = new.iter().find(|new| !is_allowed(new)) {
        let event_type = wrong.event_type.clone();
        return Err(ExecuteError::MayNotRecord { command: rules.shown(), event_type });
    }
    Ok((events, new))
}
