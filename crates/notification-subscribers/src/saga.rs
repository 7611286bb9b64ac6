//! The saga aggregate: operations that belong together, what came of each, and that all of them have ended.
//!
//! It says which events tell the outcome of each operation, and which event is to be written when all have ended. It
//! completes once; outcomes that come late or twice change nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;

use aggregate::{Aggregate, event_set};
use serde::{Deserialize, Serialize};
use store::{DomainEvent, StreamName};
use uuid::Uuid;

use crate::events::events;
use crate::notification::{
    ChannelOutcome, FailedToSendNotificationEvent, SucceededInSendingNotificationEvent,
};
use crate::operations::stream_of;
use crate::recipient::DeliveryChannel;
use crate::streams::SAGAS;

/// Why an operation counts as failed that has not ended in time.
pub const TIMED_OUT: &str = "timed out";

events! {
    /// These operations are waited for.
    SagaStartedEvent {
        /// The notification that they make up.
        tracking_id: Uuid,
        /// The operations.
        operations: Vec<AwaitedOperation>,
        /// What is written if all of them succeed: a type of event.
        on_success: String,
        /// What is written if not.
        on_failure: String,
    }

    /// One of them has ended.
    SagaOperationFinishedEvent {
        /// The notification.
        tracking_id: Uuid,
        /// The operation.
        operation_id: Uuid,
        /// By which channel.
        channel: DeliveryChannel,
        /// Whether it was sent.
        succeeded: bool,
        /// Why not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    }

    /// All of them have ended.
    SagaCompletedEvent {
        /// The notification.
        tracking_id: Uuid,
        /// Whether all were sent.
        outcome: SagaOutcome,
    }
}

event_set! {
    /// What can happen to a saga.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum SagaEvent { SagaStartedEvent, SagaOperationFinishedEvent, SagaCompletedEvent }
}

/// What all of it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SagaOutcome {
    /// Everything was sent.
    Succeeded,
    /// Something was not.
    Failed,
}

/// An operation, and the events that tell its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AwaitedOperation {
    /// The operation.
    pub operation_id: Uuid,
    /// By which channel.
    pub channel: DeliveryChannel,
    /// Where its end is told.
    pub stream: String,
    /// The type of event that says it was sent.
    pub succeeded_type: String,
    /// The type of event that says it was not.
    pub failed_type: String,
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SagaCommand {
    /// Wait for these.
    Start {
        /// The operations.
        operations: Vec<AwaitedOperation>,
    },
    /// One has ended.
    OperationFinished {
        /// Which.
        operation_id: Uuid,
        /// The type of the event that says so.
        event_type: String,
        /// Why it was not sent, if it was not.
        reason: Option<String>,
    },
    /// It has taken too long.
    TimedOut,
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SagaState {
    /// In their order.
    operations: Vec<AwaitedOperation>,
    finished: BTreeMap<Uuid, Option<String>>,
    is_completed: bool,
    on_success: String,
    on_failure: String,
}

impl SagaState {
    /// Whether all have ended.
    pub fn is_completed(&self) -> bool {
        self.is_completed
    }

    /// What came of each operation that has ended, in their order.
    pub fn outcomes(&self) -> Vec<ChannelOutcome> {
        let outcome = |operation: &AwaitedOperation| {
            let failure = self.finished.get(&operation.operation_id)?;
            Some(ChannelOutcome {
                channel: operation.channel,
                operation_id: Some(operation.operation_id),
                succeeded: failure.is_none(),
                reason: failure.clone(),
            })
        };
        self.operations.iter().filter_map(outcome).collect()
    }

    /// The type of event that is to be written at the end.
    pub fn to_be_written(&self) -> &str {
        if self.finished.values().all(Option::is_none) { &self.on_success } else { &self.on_failure }
    }

    fn awaits(&self, operation_id: Uuid) -> Option<&AwaitedOperation> {
        self.operations
            .iter()
            .find(|operation| operation.operation_id == operation_id)
            .filter(|_| !self.is_completed && !self.finished.contains_key(&operation_id))
    }
}

/// The aggregate. What it decides on is its tracking id.
#[derive(Clone, Copy, Debug)]
pub struct Saga;

/// The stream of a saga.
pub fn saga_stream(tracking_id: Uuid) -> StreamName {
    stream_of(SAGAS, tracking_id)
}

impl Aggregate for Saga {
    type State = SagaState;
    type Event = SagaEvent;
    type Command = SagaCommand;
    type Context = Uuid;
    type Refusal = Infallible;

    fn decide(
        state: &SagaState,
        command: &SagaCommand,
        tracking_id: &Uuid,
    ) -> Result<Vec<SagaEvent>, Infallible> {
        let tracking_id = *tracking_id;
        match command {
            SagaCommand::Start { operations } => {
                let is_new = state.operations.is_empty() && !operations.is_empty();
                let started = is_new.then(|| {
                    SagaEvent::SagaStartedEvent(SagaStartedEvent {
                        tracking_id,
                        operations: operations.clone(),
                        on_success: SucceededInSendingNotificationEvent::TYPE.to_owned(),
                        on_failure: FailedToSendNotificationEvent::TYPE.to_owned(),
                    })
                });
                Ok(started.into_iter().collect())
            }
            SagaCommand::OperationFinished { operation_id, event_type, reason } => {
                let Some(operation) = state.awaits(*operation_id) else { return Ok(Vec::new()) };
                let failure = match event_type {
                    failed if *failed == operation.failed_type => Some(reason.clone().unwrap_or_default()),
                    sent if *sent == operation.succeeded_type => None,
                    _ => return Ok(Vec::new()),
                };
                Ok(finished(state, tracking_id, &[(operation, failure)]))
            }
            SagaCommand::TimedOut => {
                let is_silent =
                    |operation: &&AwaitedOperation| state.awaits(operation.operation_id).is_some();
                let silent = state.operations.iter().filter(is_silent);
                let silent: Vec<_> =
                    silent.map(|operation| (operation, Some(TIMED_OUT.to_owned()))).collect();
                Ok(finished(state, tracking_id, &silent))
            }
        }
    }

    fn evolve(mut state: SagaState, event: &SagaEvent) -> SagaState {
        match event {
            SagaEvent::SagaStartedEvent(event) => {
                state.operations.clone_from(&event.operations);
                state.on_success.clone_from(&event.on_success);
                state.on_failure.clone_from(&event.on_failure);
            }
            SagaEvent::SagaOperationFinishedEvent(event) => {
                let failure = (!event.succeeded).then(|| event.reason.clone().unwrap_or_default());
                state.finished.insert(event.operation_id, failure);
            }
            SagaEvent::SagaCompletedEvent(_) => state.is_completed = true,
        }
        state
    }
}

/// That these have ended, and that all have if these were the last.
fn finished(
    state: &SagaState,
    tracking_id: Uuid,
    now: &[(&AwaitedOperation, Option<String>)],
) -> Vec<SagaEvent> {
    let mut events: Vec<SagaEvent> = now
        .iter()
        .map(|(operation, failure)| {
            SagaEvent::SagaOperationFinishedEvent(SagaOperationFinishedEvent {
                tracking_id,
                operation_id: operation.operation_id,
                channel: operation.channel,
                succeeded: failure.is_none(),
                reason: failure.clone(),
            })
        })
        .collect();
    if !now.is_empty() && state.finished.len() + now.len() == state.operations.len() {
        let has_failed =
            state.finished.values().chain(now.iter().map(|(_, failure)| failure)).any(Option::is_some);
        let outcome = if has_failed { SagaOutcome::Failed } else { SagaOutcome::Succeeded };
        events.push(SagaEvent::SagaCompletedEvent(SagaCompletedEvent { tracking_id, outcome }));
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Uuid = Uuid::from_u128(7);

    fn decide(state: &SagaState, command: &SagaCommand) -> Vec<SagaEvent> {
        Saga::decide(state, command, &ID).unwrap()
    }

    fn given(commands: &[SagaCommand]) -> SagaState {
        commands.iter().fold(SagaState::default(), |state, command| {
            decide(&state, command).iter().fold(state, Saga::evolve)
        })
    }

    fn start() -> SagaCommand {
        let operation = |number, channel| AwaitedOperation {
            operation_id: Uuid::from_u128(number),
            channel,
            stream: format!("x-{number}"),
            succeeded_type: "Sent".into(),
            failed_type: "Failed".into(),
        };
        SagaCommand::Start {
            operations: vec![operation(1, DeliveryChannel::Email), operation(2, DeliveryChannel::Slack)],
        }
    }

    fn told(number: u128, event_type: &str) -> SagaCommand {
        let reason = (event_type == "Failed").then(|| "no".to_owned());
        SagaCommand::OperationFinished {
            operation_id: Uuid::from_u128(number),
            event_type: event_type.into(),
            reason,
        }
    }

    fn completed(events: &[SagaEvent]) -> Option<SagaOutcome> {
        match events.last() {
            Some(SagaEvent::SagaCompletedEvent(event)) => Some(event.outcome),
            _ => None,
        }
    }

    #[test]
    fn naos_22_it_completes_when_all_have_ended_in_any_order() {
        for (first, second) in [(1, 2), (2, 1)] {
            let half = given(&[start(), told(first, "Sent")]);
            assert!(!half.is_completed());
            assert_eq!(completed(&decide(&half, &told(second, "Sent"))), Some(SagaOutcome::Succeeded));
            assert_eq!(completed(&decide(&half, &told(second, "Failed"))), Some(SagaOutcome::Failed));
            let failed = given(&[start(), told(first, "Failed")]);
            assert_eq!(completed(&decide(&failed, &told(second, "Sent"))), Some(SagaOutcome::Failed));
        }
        let done = given(&[start(), told(2, "Failed"), told(1, "Sent")]);
        assert_eq!(done.to_be_written(), FailedToSendNotificationEvent::TYPE);
        let outcomes: Vec<_> =
            done.outcomes().into_iter().map(|one| (one.channel, one.succeeded, one.reason)).collect();
        assert_eq!(
            outcomes,
            [(DeliveryChannel::Email, true, None), (DeliveryChannel::Slack, false, Some("no".to_owned()))]
        );
    }

    #[test]
    fn it_completes_once_and_ignores_what_is_late_double_or_foreign() {
        let done = given(&[start(), told(1, "Sent"), told(2, "Sent")]);
        assert!(done.is_completed());
        assert_eq!(done.to_be_written(), SucceededInSendingNotificationEvent::TYPE);
        for command in [start(), told(1, "Failed"), told(2, "Sent"), SagaCommand::TimedOut] {
            assert_eq!(decide(&done, &command), []);
        }
        let half = given(&[start(), told(1, "Sent")]);
        for command in [told(1, "Failed"), told(1, "Sent"), told(3, "Sent"), told(2, "Delayed")] {
            assert_eq!(decide(&half, &command), []);
        }
        assert_eq!(decide(&given(&[]), &told(1, "Sent")), []);
        assert_eq!(decide(&given(&[]), &SagaCommand::TimedOut), []);
    }

    #[test]
    fn silence_becomes_a_failure() {
        let half = given(&[start(), told(1, "Sent")]);
        let events = decide(&half, &SagaCommand::TimedOut);
        assert_eq!(completed(&events), Some(SagaOutcome::Failed));
        let [SagaEvent::SagaOperationFinishedEvent(event), _] = &events[..] else { panic!("{events:?}") };
        assert_eq!((event.channel, event.reason.as_deref()), (DeliveryChannel::Slack, Some(TIMED_OUT)));
        assert_eq!(decide(&given(&[start()]), &SagaCommand::TimedOut).len(), 3);
    }
}
