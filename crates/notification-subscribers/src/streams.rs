//! Classes of streams: which there are, what each holds, who may write to it, and the door that refuses the others.
//!
//! A producer is handed a [`Writer`] and appends through nothing else. The table of rights is [`Producer::writes`], in
//! one place; whoever is not named there for a class gets a typed refusal, and nothing is appended.

use aggregate::EventSet;
use store::{DomainEvent, ExpectedVersion, NewEvent, StreamName};
use subscription_engine::{BoxError, Cause};
use uuid::Uuid;

use crate::failure::TellInternalTeamOp;
use crate::notification::SendNotificationToEntityOp;
use crate::operations::{
    EMAIL_EVENTS, EMAIL_OPERATIONS, SLACK_EVENTS, SLACK_OPERATIONS, SendEmailOp, SendSlackMessageOp,
    stream_of,
};
use crate::saga::{SagaCompletedEvent, SagaOperationFinishedEvent, SagaStartedEvent};

/// What clients ask for.
pub const CLIENT_OPERATIONS: &str = "notification_clientop";
/// What the system asks of itself.
pub const INTERNAL_OPERATIONS: &str = "notification_internalop";
/// What is waited for.
pub const SAGAS: &str = "saga";
/// What happened to a notification.
pub const NOTIFICATIONS: &str = "notification";
/// Who is reached how.
pub const RECIPIENTS: &str = "recipient";
/// What somebody is to be reminded of.
pub const REMINDERS: &str = "reminder";

/// The namespace of stream names for users whose id is too long for one, and of operation ids.
const OURS: Uuid = Uuid::from_u128(0x0d9e_52c4_7b1f_5a36_8e40_61c7_f3a8_b52d);

/// The id of an operation or a mail: always the same for the same cause and purpose.
pub(crate) fn derived_id(cause: Uuid, purpose: &str) -> Uuid {
    Uuid::new_v5(&OURS, format!("{cause}\n{purpose}").as_bytes())
}

/// The id under which a client's work is tracked that names this key: the same whenever it is named again.
pub(crate) fn id_of_key(key: &str) -> Uuid {
    Uuid::new_v5(&OURS, format!("idempotency key\n{key}").as_bytes())
}

/// The stream of a user in a category. An id that leaves no room for the category is replaced by its digest.
pub fn stream_of_user(category: &str, user_id: &str) -> StreamName {
    StreamName::new(format!("{category}-{user_id}"))
        .unwrap_or_else(|_| stream_of(category, Uuid::new_v5(&OURS, user_id.as_bytes())))
}

/// What kind of stream it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Work that clients have queued.
    ClientOperations,
    /// Work that the system has queued for itself.
    InternalOperations,
    /// What several operations come to together.
    Sagas,
    /// What has happened.
    Events,
    /// Mails to be sent.
    EmailOperations,
    /// What came of mails.
    EmailEvents,
    /// Slack messages to be sent.
    SlackOperations,
    /// What came of Slack messages.
    SlackEvents,
    /// What people read: rows of a projector, never events of the log.
    Views,
    /// Where repositories begin to read: rows of the snapshot table, never events of the log.
    Snapshots,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::ClientOperations,
        Self::InternalOperations,
        Self::Sagas,
        Self::Events,
        Self::EmailOperations,
        Self::EmailEvents,
        Self::SlackOperations,
        Self::SlackEvents,
        Self::Views,
        Self::Snapshots,
    ];

    /// The class of a stream; none if it is no stream of the notification system.
    pub fn of(stream: &StreamName) -> Option<Self> {
        Some(match stream.category() {
            CLIENT_OPERATIONS => Self::ClientOperations,
            INTERNAL_OPERATIONS => Self::InternalOperations,
            SAGAS => Self::Sagas,
            NOTIFICATIONS | RECIPIENTS | REMINDERS | "channel" | "user" => Self::Events,
            EMAIL_OPERATIONS => Self::EmailOperations,
            EMAIL_EVENTS => Self::EmailEvents,
            SLACK_OPERATIONS => Self::SlackOperations,
            SLACK_EVENTS => Self::SlackEvents,
            "$snapshot" => Self::Snapshots,
            category if category.starts_with("view_") => Self::Views,
            _ => return None,
        })
    }

    /// The one class that may hold events of this type; none for those that say what has happened.
    fn that_holds(event_type: &str) -> Option<Self> {
        match event_type {
            SendNotificationToEntityOp::TYPE => Some(Self::ClientOperations),
            TellInternalTeamOp::TYPE => Some(Self::InternalOperations),
            SendEmailOp::TYPE => Some(Self::EmailOperations),
            SendSlackMessageOp::TYPE => Some(Self::SlackOperations),
            SagaStartedEvent::TYPE | SagaOperationFinishedEvent::TYPE | SagaCompletedEvent::TYPE => {
                Some(Self::Sagas)
            }
            _ => None,
        }
    }

    /// Whether a stream of this class may hold events of this type.
    pub fn holds(self, event_type: &str) -> bool {
        match Self::that_holds(event_type) {
            Some(class) => class == self,
            None => matches!(self, Self::Events | Self::EmailEvents | Self::SlackEvents),
        }
    }
}

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Producer {
    /// Whoever asks from outside, by the command line or HTTP.
    Client,
    /// The handlers of commands on users, channels and recipients.
    CommandHandler,
    /// `send_notification`.
    ClientOperationHandler,
    /// `send_saga`.
    SagaHandler,
    /// `failure_reactor`.
    FailureReactor,
    /// `internal_operations`.
    InternalOperationHandler,
    /// `reminder_schedule`.
    ReminderManager,
    /// Those who send, and say what came of it.
    DeliveryWorker,
    /// Those who build what people read: their rows are no events.
    Projector,
}

impl Producer {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Client,
        Self::CommandHandler,
        Self::ClientOperationHandler,
        Self::SagaHandler,
        Self::FailureReactor,
        Self::InternalOperationHandler,
        Self::ReminderManager,
        Self::DeliveryWorker,
        Self::Projector,
    ];

    /// The classes to which it may append.
    pub fn writes(self) -> &'static [Class] {
        use Class::{
            ClientOperations, EmailEvents, EmailOperations, Events, InternalOperations, Sagas, SlackEvents,
            SlackOperations,
        };
        match self {
            Self::Client => &[ClientOperations],
            Self::CommandHandler => &[Events],
            Self::ClientOperationHandler => &[Events, Sagas, EmailOperations, SlackOperations],
            Self::SagaHandler => &[Sagas, Events],
            Self::FailureReactor => &[InternalOperations],
            Self::InternalOperationHandler => &[Events, EmailOperations, SlackOperations],
            Self::ReminderManager => &[Events, EmailOperations],
            Self::DeliveryWorker => &[EmailEvents, SlackEvents],
            Self::Projector => &[],
        }
    }
}

/// Why an append is refused; nothing was appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The stream has no class.
    #[error("{stream} is no stream of the notification system")]
    NoClass {
        /// The stream.
        stream: StreamName,
    },
    /// Not one of its producers.
    #[error("{producer:?} may not write to {stream}: that is for other producers of {class:?}")]
    NotAProducer {
        /// Who wanted to.
        producer: Producer,
        /// Where.
        stream: StreamName,
        /// The class of the stream.
        class: Class,
    },
    /// Streams are told apart by what they hold.
    #[error("{stream} does not hold events of type {event_type}")]
    WrongContent {
        /// The stream.
        stream: StreamName,
        /// The type.
        event_type: String,
    },
}

/// The right of one producer to append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer(Producer);

impl Writer {
    /// The rights of this producer.
    pub const fn of(producer: Producer) -> Self {
        Self(producer)
    }

    /// Whether an event of this type may be appended to this stream.
    pub fn check(self, stream: &StreamName, event_type: &str) -> Result<(), Refused> {
        let stream = stream.clone();
        let Some(class) = Class::of(&stream) else { return Err(Refused::NoClass { stream }) };
        if !self.0.writes().contains(&class) {
            return Err(Refused::NotAProducer { producer: self.0, stream, class });
        }
        if !class.holds(event_type) {
            return Err(Refused::WrongContent { stream, event_type: event_type.to_owned() });
        }
        Ok(())
    }

    /// Appends what a cause brings about, if this producer may.
    pub fn append<E: DomainEvent>(
        self,
        cause: &mut Cause<'_, '_>,
        stream: &StreamName,
        expected: ExpectedVersion,
        event: &E,
    ) -> Result<(), BoxError> {
        self.append_new(cause, stream, expected, NewEvent::of(event)?)
    }

    /// As [`Writer::append`], of an event of an aggregate.
    pub(crate) fn append_one_of<S: EventSet>(
        self,
        cause: &mut Cause<'_, '_>,
        stream: &StreamName,
        expected: ExpectedVersion,
        event: &S,
    ) -> Result<(), BoxError> {
        self.append_new(cause, stream, expected, event.encode()?)
    }

    fn append_new(
        self,
        cause: &mut Cause<'_, '_>,
        stream: &StreamName,
        expected: ExpectedVersion,
        new: NewEvent,
    ) -> Result<(), BoxError> {
        self.check(stream, &new.event_type)?;
        cause.append(stream, expected, &new.event_type, new.payload)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream of each class, and a type that belongs there.
    fn example(class: Class) -> (StreamName, &'static str) {
        let happened = "Acme.Notifications:SomethingHappened";
        let (name, event_type) = match class {
            Class::ClientOperations => ("notification_clientop-1", SendNotificationToEntityOp::TYPE),
            Class::InternalOperations => ("notification_internalop-1", TellInternalTeamOp::TYPE),
            Class::Sagas => ("saga-1", SagaStartedEvent::TYPE),
            Class::Events => ("notification-1", happened),
            Class::EmailOperations => ("email_op-1", SendEmailOp::TYPE),
            Class::EmailEvents => ("email-1", happened),
            Class::SlackOperations => ("slack_op-1", SendSlackMessageOp::TYPE),
            Class::SlackEvents => ("slack-1", happened),
            Class::Views => ("view_tracking-1", happened),
            Class::Snapshots => ("$snapshot-user-1", happened),
        };
        (StreamName::new(name).unwrap(), event_type)
    }

    #[test]
    fn naos_02_each_producer_writes_where_it_may_and_nowhere_else() {
        // As the requirements have it, class by class.
        use Producer::*;
        let producers_of = |class| match class {
            Class::ClientOperations => vec![Client],
            Class::InternalOperations => vec![FailureReactor],
            Class::Sagas => vec![ClientOperationHandler, SagaHandler],
            Class::Events => vec![
                CommandHandler,
                ClientOperationHandler,
                SagaHandler,
                InternalOperationHandler,
                ReminderManager,
            ],
            Class::EmailOperations => {
                vec![ClientOperationHandler, InternalOperationHandler, ReminderManager]
            }
            Class::SlackOperations => vec![ClientOperationHandler, InternalOperationHandler],
            Class::EmailEvents | Class::SlackEvents => vec![DeliveryWorker],
            Class::Views | Class::Snapshots => vec![],
        };
        for class in Class::ALL {
            let (stream, event_type) = example(class);
            assert_eq!(Class::of(&stream), Some(class));
            for producer in Producer::ALL {
                let may = Writer::of(producer).check(&stream, event_type);
                let refused = Refused::NotAProducer { producer, stream: stream.clone(), class };
                let expected = if producers_of(class).contains(&producer) { Ok(()) } else { Err(refused) };
                assert_eq!(may, expected);
            }
        }
    }

    #[test]
    fn naos_01_streams_are_told_apart_by_what_they_hold() {
        for class in Class::ALL.into_iter().filter(|class| !matches!(class, Class::Views | Class::Snapshots))
        {
            for other in Class::ALL {
                let (_, event_type) = example(other);
                let is_operation = Class::that_holds(event_type).is_some();
                let fits = if is_operation { class == other } else { class.holds(example(Class::Events).1) };
                assert_eq!(class.holds(event_type), fits, "{event_type} in {class:?}");
            }
        }
        let stream = StreamName::new("orders-1").unwrap();
        assert_eq!(
            Writer::of(Producer::Client).check(&stream, SendEmailOp::TYPE),
            Err(Refused::NoClass { stream })
        );
        let (stream, _) = example(Class::EmailOperations);
        let refused = Writer::of(Producer::ReminderManager).check(&stream, SendSlackMessageOp::TYPE);
        assert!(matches!(refused, Err(Refused::WrongContent { .. })), "{refused:?}");
    }

    #[test]
    fn any_user_id_makes_a_stream_of_its_own() {
        let long = "x".repeat(250);
        let name = stream_of_user(RECIPIENTS, &long);
        assert_eq!(name.category(), RECIPIENTS);
        assert_ne!(name, stream_of_user(RECIPIENTS, &"x".repeat(249)));
        assert_eq!(stream_of_user(REMINDERS, "a-b,c").as_str(), "reminder-a-b,c");
    }
}
