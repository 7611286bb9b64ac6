//! The notification aggregate: what a client asked for, and how far that has come.
//!
//! It is asked for, prepared for the channels by which its audience is reached, and ends in one of three ways; a
//! failure is told to a team once.

use std::convert::Infallible;

use aggregate::{Aggregate, event_set};
use serde::{Deserialize, Serialize};
use store::{DomainEvent, StreamName};
use uuid::Uuid;

use crate::events::events;
use crate::operations::stream_of;
use crate::recipient::{DeliveryChannel, Unreachable};
use crate::streams::NOTIFICATIONS;

events! {
    /// A client asks for a notification.
    SendNotificationToEntityOp {
        /// Under which everything about it is found.
        tracking_id: Uuid,
        /// To whom.
        entity_id: String,
        /// What it is about.
        subject: String,
        /// What it says.
        body: String,
    }

    /// It is being worked on: everything that was asked for.
    RequestedNotificationToBeSentEvent {
        /// See [`SendNotificationToEntityOp::tracking_id`].
        tracking_id: Uuid,
        /// To whom.
        entity_id: String,
        /// What it is about.
        subject: String,
        /// What it says.
        body: String,
    }

    /// Messages for these channels were put in their queues.
    PreparedToSendEvent {
        /// The notification.
        tracking_id: Uuid,
        /// By which channels.
        channels: Vec<PreparedChannel>,
        /// By which not.
        skipped: Vec<SkippedChannel>,
    }

    /// The audience wants none of it: a good end.
    AudienceOptedOutOfAllChannelsEvent {
        /// The notification.
        tracking_id: Uuid,
        /// What kept each channel.
        skipped: Vec<SkippedChannel>,
    }

    /// It was sent by every channel.
    SucceededInSendingNotificationEvent {
        /// The notification.
        tracking_id: Uuid,
        /// By which.
        per_channel: Vec<ChannelOutcome>,
    }

    /// It was not sent by every channel, or by none.
    FailedToSendNotificationEvent {
        /// The notification.
        tracking_id: Uuid,
        /// To whom.
        entity_id: String,
        /// What it is about.
        subject: String,
        /// How far it came.
        outcome: FailureOutcome,
        /// What came of each channel.
        per_channel: Vec<ChannelOutcome>,
    }

    /// A mail to the team that looks after failures was put in its queue.
    FailedNotificationSentToInternalTeamEvent {
        /// The notification.
        tracking_id: Uuid,
        /// The mail.
        operation_id: Uuid,
        /// The team.
        to: String,
    }
}

event_set! {
    /// What can happen to a notification.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum NotificationEvent {
        RequestedNotificationToBeSentEvent, PreparedToSendEvent, AudienceOptedOutOfAllChannelsEvent,
        SucceededInSendingNotificationEvent, FailedToSendNotificationEvent,
        FailedNotificationSentToInternalTeamEvent,
    }
}

/// A channel with a message in its queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PreparedChannel {
    /// Which.
    pub channel: DeliveryChannel,
    /// The message.
    pub operation_id: Uuid,
    /// Where it goes.
    pub to: String,
}

/// A channel that is not used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SkippedChannel {
    /// Which.
    pub channel: DeliveryChannel,
    /// Why not.
    pub reason: Unreachable,
}

/// What came of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelOutcome {
    /// Which.
    pub channel: DeliveryChannel,
    /// The message; none if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation_id: Option<Uuid>,
    /// Whether it was sent.
    pub succeeded: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far a notification came that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureOutcome {
    /// There was no way to reach its audience.
    CouldNotPrepareToSendOnAnyChannel,
    /// Some messages were sent, and some not.
    SentOnSomePreparedChannels,
    /// No message was sent.
    CouldNotSendOnAnyPreparedChannel,
}

impl FailureOutcome {
    /// Its name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::CouldNotPrepareToSendOnAnyChannel => "CouldNotPrepareToSendOnAnyChannel",
            Self::SentOnSomePreparedChannels => "SentOnSomePreparedChannels",
            Self::CouldNotSendOnAnyPreparedChannel => "CouldNotSendOnAnyPreparedChannel",
        }
    }
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotificationCommand {
    /// Begin.
    Request {
        /// To whom.
        entity_id: String,
        /// What it is about.
        subject: String,
        /// What it says.
        body: String,
    },
    /// These channels are used, and those not.
    Prepare {
        /// Used.
        channels: Vec<PreparedChannel>,
        /// Not used.
        skipped: Vec<SkippedChannel>,
    },
    /// All messages have come to an end.
    RecordOutcome {
        /// How.
        per_channel: Vec<ChannelOutcome>,
    },
    /// A team is told of the failure.
    TellTeam {
        /// By this mail.
        operation_id: Uuid,
        /// The team.
        to: String,
    },
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotificationState {
    /// Nobody has asked for it.
    #[default]
    Unknown,
    /// It was asked for.
    Requested {
        /// To whom.
        entity_id: String,
        /// What it is about.
        subject: String,
    },
    /// Messages are in their queues.
    Prepared {
        /// To whom.
        entity_id: String,
        /// What it is about.
        subject: String,
    },
    /// It failed, and nobody was told.
    Failed,
    /// It has come to its end.
    Ended,
}

/// The aggregate. What it decides on is its tracking id.
#[derive(Clone, Copy, Debug)]
pub struct Notification;

/// The stream in which everything happens to a notification.
pub fn notification_stream(tracking_id: Uuid) -> StreamName {
    stream_of(NOTIFICATIONS, tracking_id)
}

impl Aggregate for Notification {
    type State = NotificationState;
    type Event = NotificationEvent;
    type Command = NotificationCommand;
    type Context = Uuid;
    type Refusal = Infallible;

    /// Each phase is recorded once: what comes out of turn changes nothing.
    fn decide(
        state: &NotificationState,
        command: &NotificationCommand,
        tracking_id: &Uuid,
    ) -> Result<Vec<NotificationEvent>, Infallible> {
        let tracking_id = *tracking_id;
        let happens = match (state, command) {
            (NotificationState::Unknown, NotificationCommand::Request { entity_id, subject, body }) => {
                let (entity_id, subject, body) = (entity_id.clone(), subject.clone(), body.clone());
                let requested = RequestedNotificationToBeSentEvent { tracking_id, entity_id, subject, body };
                NotificationEvent::RequestedNotificationToBeSentEvent(requested)
            }
            (
                NotificationState::Requested { entity_id, subject },
                NotificationCommand::Prepare { channels, skipped },
            ) => prepared(tracking_id, entity_id, subject, channels, skipped),
            (
                NotificationState::Prepared { entity_id, subject },
                NotificationCommand::RecordOutcome { per_channel },
            ) => ended(tracking_id, entity_id, subject, per_channel),
            (NotificationState::Failed, NotificationCommand::TellTeam { operation_id, to }) => {
                let (operation_id, to) = (*operation_id, to.clone());
                let told = FailedNotificationSentToInternalTeamEvent { tracking_id, operation_id, to };
                NotificationEvent::FailedNotificationSentToInternalTeamEvent(told)
            }
            _ => return Ok(Vec::new()),
        };
        Ok(vec![happens])
    }

    fn evolve(state: NotificationState, event: &NotificationEvent) -> NotificationState {
        match event {
            NotificationEvent::RequestedNotificationToBeSentEvent(event) => NotificationState::Requested {
                entity_id: event.entity_id.clone(),
                subject: event.subject.clone(),
            },
            NotificationEvent::PreparedToSendEvent(_) => match state {
                NotificationState::Requested { entity_id, subject } => {
                    NotificationState::Prepared { entity_id, subject }
                }
                other => other,
            },
            NotificationEvent::FailedToSendNotificationEvent(_) => NotificationState::Failed,
            NotificationEvent::AudienceOptedOutOfAllChannelsEvent(_)
            | NotificationEvent::SucceededInSendingNotificationEvent(_)
            | NotificationEvent::FailedNotificationSentToInternalTeamEvent(_) => NotificationState::Ended,
        }
    }
}

/// Who wants none of it is left alone; that nobody knows where to send it, or that mail came back, is a failure.
fn prepared(
    tracking_id: Uuid,
    entity_id: &str,
    subject: &str,
    channels: &[PreparedChannel],
    skipped: &[SkippedChannel],
) -> NotificationEvent {
    let skipped_for = |reason| skipped.iter().any(|skipped| skipped.reason == reason);
    if !channels.is_empty() {
        let (channels, skipped) = (channels.to_vec(), skipped.to_vec());
        NotificationEvent::PreparedToSendEvent(PreparedToSendEvent { tracking_id, channels, skipped })
    } else if skipped_for(Unreachable::OptedOut) && !skipped_for(Unreachable::Suppressed) {
        let skipped = skipped.to_vec();
        NotificationEvent::AudienceOptedOutOfAllChannelsEvent(AudienceOptedOutOfAllChannelsEvent {
            tracking_id,
            skipped,
        })
    } else {
        let outcome = |skipped: &SkippedChannel| ChannelOutcome {
            channel: skipped.channel,
            operation_id: None,
            succeeded: false,
            reason: Some(skipped.reason.word().to_owned()),
        };
        NotificationEvent::FailedToSendNotificationEvent(FailedToSendNotificationEvent {
            tracking_id,
            entity_id: entity_id.to_owned(),
            subject: subject.to_owned(),
            outcome: FailureOutcome::CouldNotPrepareToSendOnAnyChannel,
            per_channel: skipped.iter().map(outcome).collect(),
        })
    }
}

fn ended(
    tracking_id: Uuid,
    entity_id: &str,
    subject: &str,
    per_channel: &[ChannelOutcome],
) -> NotificationEvent {
    let per_channel = per_channel.to_vec();
    let sent = per_channel.iter().filter(|outcome| outcome.succeeded).count();
    if sent == per_channel.len() {
        let succeeded = SucceededInSendingNotificationEvent { tracking_id, per_channel };
        return NotificationEvent::SucceededInSendingNotificationEvent(succeeded);
    }
    let outcome = match sent {
        0 => FailureOutcome::CouldNotSendOnAnyPreparedChannel,
        _ => FailureOutcome::SentOnSomePreparedChannels,
    };
    NotificationEvent::FailedToSendNotificationEvent(FailedToSendNotificationEvent {
        tracking_id,
        entity_id: entity_id.to_owned(),
        subject: subject.to_owned(),
        outcome,
        per_channel,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: Uuid = Uuid::from_u128(7);

    fn decide(state: &NotificationState, command: &NotificationCommand) -> Vec<NotificationEvent> {
        Notification::decide(state, command, &ID).unwrap()
    }

    fn given(commands: &[NotificationCommand]) -> NotificationState {
        commands.iter().fold(NotificationState::default(), |state, command| {
            decide(&state, command).iter().fold(state, Notification::evolve)
        })
    }

    fn request() -> NotificationCommand {
        NotificationCommand::Request {
            entity_id: "alice".into(),
            subject: "News".into(),
            body: "Good".into(),
        }
    }

    fn both() -> NotificationCommand {
        let channel = |channel, number| PreparedChannel {
            channel,
            operation_id: Uuid::from_u128(number),
            to: "there".into(),
        };
        let channels = vec![channel(DeliveryChannel::Email, 1), channel(DeliveryChannel::Slack, 2)];
        NotificationCommand::Prepare { channels, skipped: vec![] }
    }

    fn none(email: Unreachable, slack: Unreachable) -> NotificationCommand {
        let skipped = vec![
            SkippedChannel { channel: DeliveryChannel::Email, reason: email },
            SkippedChannel { channel: DeliveryChannel::Slack, reason: slack },
        ];
        NotificationCommand::Prepare { channels: vec![], skipped }
    }

    fn outcomes(email: bool, slack: bool) -> NotificationCommand {
        let outcome = |channel, succeeded: bool| ChannelOutcome {
            channel,
            operation_id: Some(ID),
            succeeded,
            reason: (!succeeded).then(|| "no".to_owned()),
        };
        let per_channel =
            vec![outcome(DeliveryChannel::Email, email), outcome(DeliveryChannel::Slack, slack)];
        NotificationCommand::RecordOutcome { per_channel }
    }

    fn failure(events: &[NotificationEvent]) -> Option<FailureOutcome> {
        match events {
            [NotificationEvent::FailedToSendNotificationEvent(event)] => {
                assert_eq!((event.entity_id.as_str(), event.subject.as_str()), ("alice", "News"));
                Some(event.outcome)
            }
            _ => None,
        }
    }

    #[test]
    fn naos_23_it_succeeds_when_every_channel_has_and_fails_otherwise() {
        let prepared = given(&[request(), both()]);
        let [NotificationEvent::SucceededInSendingNotificationEvent(_)] =
            &decide(&prepared, &outcomes(true, true))[..]
        else {
            panic!("it has not succeeded")
        };
        for (email, slack, outcome) in [
            (true, false, FailureOutcome::SentOnSomePreparedChannels),
            (false, true, FailureOutcome::SentOnSomePreparedChannels),
            (false, false, FailureOutcome::CouldNotSendOnAnyPreparedChannel),
        ] {
            assert_eq!(failure(&decide(&prepared, &outcomes(email, slack))), Some(outcome));
        }
    }

    #[test]
    fn n_24_opting_out_is_a_good_end_and_no_address_is_a_failure() {
        use Unreachable::{NoAddress, OptedOut, Suppressed};
        for (email, slack) in [(OptedOut, OptedOut), (OptedOut, NoAddress), (NoAddress, OptedOut)] {
            let events = decide(&given(&[request()]), &none(email, slack));
            assert!(matches!(events[..], [NotificationEvent::AudienceOptedOutOfAllChannelsEvent(_)]));
        }
        for (email, slack) in [(NoAddress, NoAddress), (Suppressed, NoAddress), (Suppressed, OptedOut)] {
            let outcome = failure(&decide(&given(&[request()]), &none(email, slack)));
            assert_eq!(outcome, Some(FailureOutcome::CouldNotPrepareToSendOnAnyChannel));
        }
    }

    #[test]
    fn each_phase_is_recorded_once_and_nothing_out_of_turn() {
        let tell = NotificationCommand::TellTeam { operation_id: ID, to: "team@example.org".into() };
        let all = [request(), both(), outcomes(true, false), tell.clone()];
        for done in 0..=all.len() {
            let state = given(&all[..done]);
            for (number, command) in all.iter().enumerate() {
                assert_eq!(decide(&state, command).len(), usize::from(number == done), "{done}: {command:?}");
            }
        }
        assert_eq!(decide(&given(&[request(), both(), outcomes(true, true)]), &tell), []);
    }
}
