//! `reminder_schedule`: keeps what users are to be reminded of, and asks for the mails.
//!
//! A user has one timer: the next instant at which a mail could be due. A mail that is on its way has none; its end is
//! heard of. So nothing waits in memory, and a long downtime comes to one mail for each user.

mod mail;

use std::collections::HashMap;

use async_trait::async_trait;
use store::{DomainEvent, Event, ExpectedVersion, Json, Timestamp};
use subscription_engine::{BoxError, Cause, Context, Definition, Poison, Subscriber, Timer};

use crate::events::{UserHasAcknowledgedNotification, UserWasNotified};
use crate::in_unit::InUnit;
use crate::operations::{
    EMAIL_OPERATIONS, FailedToSendEmailEvent, SendEmailOp, SucceededInSendingEmailEvent, end_told_by,
    stream_of,
};
use crate::policy::Policy;
use crate::recipient::Recipient;
use crate::reminder::{ReminderCommand, ReminderContext, ReminderEvent, ReminderSchedule};
use crate::streams::{Producer, RECIPIENTS, REMINDERS, Writer, derived_id, stream_of_user};

const WRITER: Writer = Writer::of(Producer::ReminderManager);

/// The subscriber.
#[derive(Clone, Debug)]
pub struct ReminderManager {
    policy: Policy,
}

/// The schedules that a unit has to do with, by user: each is read once.
type Schedules = HashMap<String, InUnit<ReminderSchedule>>;

impl ReminderManager {
    /// By these numbers.
    pub fn new(policy: Policy) -> Self {
        Self { policy }
    }

    fn context(&self, user_id: &str, now: Timestamp) -> ReminderContext {
        ReminderContext {
            user_id: user_id.to_owned(),
            now,
            due_after: self.policy.reminder_due_after,
            mail_window: self.policy.reminder_mail_window,
        }
    }

    /// Decides on a command, and sets the timer anew if that has changed anything.
    async fn decide(
        &self,
        schedules: &mut Schedules,
        cause: &mut Cause<'_, '_>,
        user_id: &str,
        command: &ReminderCommand,
        now: Timestamp,
    ) -> Result<(), BoxError> {
        let schedule = scheduled(schedules, cause, user_id).await?;
        if schedule.execute(cause, WRITER, command, &self.context(user_id, now))?.is_empty() {
            return Ok(());
        }
        self.set_timer(cause, user_id, schedule, None)
    }

    /// Not before `earliest`, if that is given.
    fn set_timer(
        &self,
        cause: &mut Cause<'_, '_>,
        user_id: &str,
        schedule: &InUnit<ReminderSchedule>,
        earliest: Option<Timestamp>,
    ) -> Result<(), BoxError> {
        match schedule.state.next_look(self.policy.reminder_mail_window) {
            Some(at) => cause.set_timer(
                user_id,
                earliest.map_or(at, |earliest| earliest.max(at)),
                Json::empty_object(),
            )?,
            None => cause.cancel_timer(user_id)?,
        }
        Ok(())
    }

    /// Time has passed for a user: asks for a mail, if one is due and they can be reached.
    async fn look(
        &self,
        schedules: &mut Schedules,
        timer: &Timer,
        cause: &mut Cause<'_, '_>,
        now: Timestamp,
    ) -> Result<(), BoxError> {
        let user_id = timer.key.as_str();
        let schedule = scheduled(schedules, cause, user_id).await?;
        if !schedule.state.is_due(now, self.policy.reminder_mail_window) {
            return self.set_timer(cause, user_id, schedule, None);
        }
        let stream = stream_of_user(RECIPIENTS, user_id);
        let recipient = InUnit::<Recipient>::load(cause, stream).await?.state;
        let quiet_until = recipient.quiet_until(now);
        let address = recipient.reach_with_reminders();
        let elapsed = ReminderCommand::TimerElapsed {
            mail_id: derived_id(timer.id, "email"),
            unreachable: address.err().map(|reason| reason.word().to_owned()),
            is_quiet: quiet_until.is_some(),
        };
        let happened = schedule.execute(cause, WRITER, &elapsed, &self.context(user_id, now))?;
        self.set_timer(cause, user_id, schedule, quiet_until)?;
        for event in happened {
            let (ReminderEvent::ReminderMailWasRequested(requested), Ok(to)) = (event, address) else {
                continue;
            };
            let mail = mail::compose(cause, &requested, to, &recipient).await?;
            let stream = stream_of(EMAIL_OPERATIONS, requested.mail_id);
            WRITER.append(cause, &stream, ExpectedVersion::NoStream, &mail)?;
        }
        Ok(())
    }
}

async fn scheduled<'s>(
    schedules: &'s mut Schedules,
    cause: &mut Cause<'_, '_>,
    user_id: &str,
) -> Result<&'s mut InUnit<ReminderSchedule>, BoxError> {
    if !schedules.contains_key(user_id) {
        let schedule = InUnit::load(cause, stream_of_user(REMINDERS, user_id)).await?;
        schedules.insert(user_id.to_owned(), schedule);
    }
    schedules.get_mut(user_id).ok_or_else(|| "it was put there just now".into())
}

#[async_trait]
impl Subscriber for ReminderManager {
    fn definition(&self) -> Definition {
        Definition::processor("reminder_schedule")
            .on([
                UserWasNotified::TYPE,
                UserHasAcknowledgedNotification::TYPE,
                SucceededInSendingEmailEvent::TYPE,
                FailedToSendEmailEvent::TYPE,
            ])
            // What cannot be read of one user holds up nobody else.
            .with_poison(Poison::park())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        let mut schedules = Schedules::new();
        for event in events {
            // A mail reminds of many notifications: it belongs to none of their works (N-09).
            let mut cause = context.because_of(event).without_correlation();
            let (user_id, command) = if let Some(notified) = event.decode::<UserWasNotified>() {
                let UserWasNotified { user_id, notification_id, timestamp, .. } = notified?;
                (user_id, ReminderCommand::Schedule { notification_id, occurred_at: timestamp })
            } else if let Some(acknowledged) = event.decode::<UserHasAcknowledgedNotification>() {
                let UserHasAcknowledgedNotification { user_id, notification_id } = acknowledged?;
                (user_id, ReminderCommand::Cancel { notification_id })
            } else {
                let Some((mail_id, failure)) = end_told_by(event)? else { continue };
                let Some(user_id) = reminded_by(&mut cause, mail_id).await? else { continue };
                (user_id, ReminderCommand::RecordMailOutcome { mail_id, failure })
            };
            self.decide(&mut schedules, &mut cause, &user_id, &command, event.recorded_at).await?;
        }
        Ok(())
    }

    async fn on_timer(&self, timers: &[Timer], context: &mut Context<'_>) -> Result<(), BoxError> {
        let now = context.store().clock().now().await?;
        let mut schedules = Schedules::new();
        for timer in timers {
            // A clock that was set back since does not make it early.
            let now = now.max(timer.due);
            self.look(&mut schedules, timer, &mut context.because_of_timer(timer).without_correlation(), now)
                .await?;
        }
        Ok(())
    }
}

/// Whom a mail reminds; none if it is no reminder.
async fn reminded_by(cause: &mut Cause<'_, '_>, mail_id: uuid::Uuid) -> Result<Option<String>, BoxError> {
    let loaded = cause.load(&stream_of(EMAIL_OPERATIONS, mail_id)).await?;
    let Some(past) = loaded.events.iter().find(|past| past.event_type == SendEmailOp::TYPE) else {
        return Ok(None);
    };
    let operation: SendEmailOp = past.payload.to()?;
    Ok(operation.reminds_of.map(|reminds_of| reminds_of.user_id))
}
