//! The reminder aggregate: what a user is to be reminded of, and when a mail may go out.
//!
//! A notification that was not acknowledged in time is listed in exactly one mail; two mails to a user are a window
//! apart, and none is asked for while one is on its way, so that retries cannot squeeze two into a window.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use aggregate::{Aggregate, event_set};
use serde::{Deserialize, Serialize};
use store::{DomainEvent, Timestamp};
use uuid::Uuid;

use crate::events::events;

/// One mail lists at most so many; the rest is in the next one. It bounds the mail and the event that names them.
const MOST_NOTICES: usize = 500;
/// Why a reminder was cancelled.
const ACKNOWLEDGED: &str = "acknowledged";

events! {
    /// A user will be reminded unless they acknowledge.
    ReminderWasScheduled {
        /// The user.
        user_id: String,
        /// Of what.
        notification_id: String,
        /// When.
        due_at: Timestamp,
    }

    /// A user need not be reminded any more.
    ReminderWasCancelled {
        /// The user.
        user_id: String,
        /// Of what.
        notification_id: String,
        /// Why not.
        reason: String,
    }

    /// A mail is to be sent that reminds of everything that is due.
    ReminderMailWasRequested {
        /// The user.
        user_id: String,
        /// The mail: the id of its operation.
        mail_id: Uuid,
        /// Of what, oldest first.
        notification_ids: Vec<String>,
        /// When that was decided.
        decided_at: Timestamp,
    }

    /// The mail was sent.
    ReminderEmailWasSent {
        /// The user.
        user_id: String,
        /// The mail.
        mail_id: Uuid,
        /// Of what it reminds.
        notification_ids: Vec<String>,
        /// When it was sent.
        timestamp: Timestamp,
    }

    /// There will be no such mail.
    ReminderEmailCouldNotBeSent {
        /// The user.
        user_id: String,
        /// The mail.
        mail_id: Uuid,
        /// Of what it would have reminded.
        notification_ids: Vec<String>,
        /// Why not.
        reason: String,
    }
}

event_set! {
    /// What can happen to reminders.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum ReminderEvent {
        ReminderWasScheduled, ReminderWasCancelled, ReminderMailWasRequested, ReminderEmailWasSent,
        ReminderEmailCouldNotBeSent,
    }
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReminderCommand {
    /// Somebody was notified.
    Schedule {
        /// Of what.
        notification_id: String,
        /// When it happened: what counts, however late it is heard of.
        occurred_at: Timestamp,
    },
    /// Somebody has acknowledged.
    Cancel {
        /// What.
        notification_id: String,
    },
    /// Time has passed.
    TimerElapsed {
        /// The id of the mail, if there is one.
        mail_id: Uuid,
        /// Why no mail would reach them; none if one would.
        unreachable: Option<String>,
        /// Whether they want to be left alone now.
        is_quiet: bool,
    },
    /// A mail has come to its end.
    RecordMailOutcome {
        /// The mail.
        mail_id: Uuid,
        /// Why it could not be sent; none if it was.
        failure: Option<String>,
    },
}

/// What a decision needs to know besides the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReminderContext {
    /// Whose reminders they are.
    pub user_id: String,
    /// The time it is; of an outcome, when it came about.
    pub now: Timestamp,
    /// After what time somebody is reminded.
    pub due_after: Duration,
    /// How far mails are apart.
    pub mail_window: Duration,
}

/// What the rules need to know of the past.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReminderState {
    /// What is neither acknowledged nor in a mail, and when it is due.
    open: BTreeMap<String, Timestamp>,
    in_flight: Option<InFlight>,
    last_mail_at: Option<Timestamp>,
    /// What was open once: nobody is reminded of it again.
    closed: BTreeSet<String>,
}

/// A mail that is on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct InFlight {
    mail_id: Uuid,
    notification_ids: Vec<String>,
    decided_at: Timestamp,
}

impl ReminderState {
    /// The next instant at which a mail could be due. None: nothing is open, or a mail is on its way, whose end is
    /// looked at when it comes.
    pub fn next_look(&self, mail_window: Duration) -> Option<Timestamp> {
        let due = self.open.values().min().filter(|_| self.in_flight.is_none())?;
        Some(self.next_allowed(mail_window).map_or(*due, |allowed| allowed.max(*due)))
    }

    fn next_allowed(&self, mail_window: Duration) -> Option<Timestamp> {
        self.last_mail_at.map(|last| last.plus(mail_window))
    }

    /// Whether a mail is due now, as far as time is concerned.
    pub fn is_due(&self, now: Timestamp, mail_window: Duration) -> bool {
        self.next_look(mail_window).is_some_and(|at| at <= now)
    }

    /// What is due, in the order in which it fell due.
    fn due(&self, now: Timestamp) -> Vec<String> {
        let mut due: Vec<_> =
            self.open.iter().filter(|(_, at)| **at <= now).map(|(id, at)| (*at, id)).collect();
        due.sort_unstable();
        due.into_iter().take(MOST_NOTICES).map(|(_, id)| id.clone()).collect()
    }

    fn knows(&self, notification_id: &str) -> bool {
        self.open.contains_key(notification_id) || self.closed.contains(notification_id)
    }

    fn close(&mut self, notification_ids: &[String]) {
        for id in notification_ids {
            self.open.remove(id);
            self.closed.insert(id.clone());
        }
    }
}

/// The aggregate.
#[derive(Clone, Copy, Debug)]
pub struct ReminderSchedule;

impl Aggregate for ReminderSchedule {
    type State = ReminderState;
    type Event = ReminderEvent;
    type Command = ReminderCommand;
    type Context = ReminderContext;
    type Refusal = Infallible;

    fn decide(
        state: &ReminderState,
        command: &ReminderCommand,
        context: &ReminderContext,
    ) -> Result<Vec<ReminderEvent>, Infallible> {
        let user_id = context.user_id.clone();
        let happens = match command {
            ReminderCommand::Schedule { notification_id, occurred_at } => (!state.knows(notification_id))
                .then(|| {
                    ReminderEvent::ReminderWasScheduled(ReminderWasScheduled {
                        user_id,
                        notification_id: notification_id.clone(),
                        due_at: occurred_at.plus(context.due_after),
                    })
                }),
            // What is in a mail already stays there; whoever sends it looks once more.
            ReminderCommand::Cancel { notification_id } => {
                state.open.contains_key(notification_id).then(|| {
                    ReminderEvent::ReminderWasCancelled(ReminderWasCancelled {
                        user_id,
                        notification_id: notification_id.clone(),
                        reason: ACKNOWLEDGED.to_owned(),
                    })
                })
            }
            ReminderCommand::TimerElapsed { mail_id, unreachable, is_quiet } => {
                let may_be_sent = state.is_due(context.now, context.mail_window) && !is_quiet;
                may_be_sent.then(|| {
                    let (mail_id, notification_ids) = (*mail_id, state.due(context.now));
                    match unreachable.clone() {
                        None => ReminderEvent::ReminderMailWasRequested(ReminderMailWasRequested {
                            user_id,
                            mail_id,
                            notification_ids,
                            decided_at: context.now,
                        }),
                        Some(reason) => {
                            ReminderEvent::ReminderEmailCouldNotBeSent(ReminderEmailCouldNotBeSent {
                                user_id,
                                mail_id,
                                notification_ids,
                                reason,
                            })
                        }
                    }
                })
            }
            ReminderCommand::RecordMailOutcome { mail_id, failure } => {
                let mail = state.in_flight.as_ref().filter(|mail| mail.mail_id == *mail_id);
                mail.map(|mail| {
                    let (mail_id, notification_ids) = (*mail_id, mail.notification_ids.clone());
                    match failure.clone() {
                        None => ReminderEvent::ReminderEmailWasSent(ReminderEmailWasSent {
                            user_id,
                            mail_id,
                            notification_ids,
                            timestamp: context.now,
                        }),
                        Some(reason) => {
                            ReminderEvent::ReminderEmailCouldNotBeSent(ReminderEmailCouldNotBeSent {
                                user_id,
                                mail_id,
                                notification_ids,
                                reason,
                            })
                        }
                    }
                })
            }
        };
        Ok(happens.into_iter().collect())
    }

    fn evolve(mut state: ReminderState, event: &ReminderEvent) -> ReminderState {
        match event {
            ReminderEvent::ReminderWasScheduled(event) => {
                state.open.insert(event.notification_id.clone(), event.due_at);
            }
            ReminderEvent::ReminderWasCancelled(event) => {
                state.close(std::slice::from_ref(&event.notification_id));
            }
            ReminderEvent::ReminderMailWasRequested(event) => {
                state.close(&event.notification_ids);
                state.in_flight = Some(InFlight {
                    mail_id: event.mail_id,
                    notification_ids: event.notification_ids.clone(),
                    decided_at: event.decided_at,
                });
            }
            ReminderEvent::ReminderEmailWasSent(event) => {
                let decided_at = state.in_flight.take().map(|mail| mail.decided_at);
                state.last_mail_at = decided_at.max(Some(event.timestamp));
            }
            ReminderEvent::ReminderEmailCouldNotBeSent(event) => {
                state.close(&event.notification_ids);
                state.in_flight.take_if(|mail| mail.mail_id == event.mail_id);
            }
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{REMINDER_DUE_AFTER, REMINDER_MAIL_WINDOW};

    const T0: i64 = 1_767_225_600_000_000;

    /// So many milliseconds after T0.
    fn ms(millis: i64) -> Timestamp {
        Timestamp::from_micros(T0 + millis * 1_000)
    }

    fn decide(state: &ReminderState, command: &ReminderCommand, now: Timestamp) -> Vec<ReminderEvent> {
        let context = ReminderContext {
            user_id: "user1".into(),
            now,
            due_after: REMINDER_DUE_AFTER,
            mail_window: REMINDER_MAIL_WINDOW,
        };
        ReminderSchedule::decide(state, command, &context).unwrap()
    }

    /// The state after these commands, each at its time.
    fn given(commands: &[(i64, ReminderCommand)]) -> ReminderState {
        commands.iter().fold(ReminderState::default(), |state, (at, command)| {
            decide(&state, command, ms(*at)).iter().fold(state, ReminderSchedule::evolve)
        })
    }

    fn notified(id: &str, at: i64) -> (i64, ReminderCommand) {
        (at, ReminderCommand::Schedule { notification_id: id.into(), occurred_at: ms(at) })
    }

    fn acknowledged(id: &str, at: i64) -> (i64, ReminderCommand) {
        (at, ReminderCommand::Cancel { notification_id: id.into() })
    }

    fn mail(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn elapsed(number: u128) -> ReminderCommand {
        ReminderCommand::TimerElapsed { mail_id: mail(number), unreachable: None, is_quiet: false }
    }

    fn outcome(number: u128, failure: Option<&str>) -> ReminderCommand {
        ReminderCommand::RecordMailOutcome { mail_id: mail(number), failure: failure.map(Into::into) }
    }

    /// What a mail that is asked for at this time lists.
    fn listed(state: &ReminderState, at: i64) -> Option<Vec<String>> {
        match decide(state, &elapsed(99), ms(at)).as_slice() {
            [] => None,
            [ReminderEvent::ReminderMailWasRequested(event)] => {
                assert_eq!((event.mail_id, event.decided_at), (mail(99), ms(at)));
                Some(event.notification_ids.clone())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn n_12_neos_08_due_after_an_hour_to_the_millisecond() {
        let state = given(&[notified("n1", 0)]);
        assert_eq!(listed(&state, 3_599_999), None);
        assert_eq!(listed(&state, 3_600_000), Some(vec!["n1".to_owned()]));
        assert_eq!(state.next_look(REMINDER_MAIL_WINDOW), Some(ms(3_600_000)));
    }

    #[test]
    fn n_12_somebody_is_reminded_once() {
        let sent = given(&[notified("n1", 0), (3_600_000, elapsed(1)), (3_600_001, outcome(1, None))]);
        assert_eq!(sent.next_look(REMINDER_MAIL_WINDOW), None);
        assert_eq!(listed(&sent, 100_000_000), None);
        let (at, again) = notified("n1", 5_000_000);
        assert_eq!(decide(&sent, &again, ms(at)), []);
    }

    #[test]
    fn n_13_what_was_acknowledged_before_is_not_reminded_of() {
        let state = given(&[notified("n1", 0), acknowledged("n1", 3_599_999)]);
        assert_eq!(listed(&state, 3_600_000), None);
        assert_eq!(state.next_look(REMINDER_MAIL_WINDOW), None);
        let (at, again) = acknowledged("n1", 3_600_000);
        assert_eq!(decide(&state, &again, ms(at)), []);
        assert_eq!(decide(&given(&[]), &again, ms(at)), []);
    }

    #[test]
    fn n_14_neos_09_mails_are_a_window_apart_to_the_millisecond() {
        let minutes = |n: i64| n * 60_000;
        let mut past: Vec<_> = (0..4).map(|n| notified(&format!("n{n}"), minutes(n))).collect();
        past.push((minutes(60), elapsed(1)));
        // On its way: nothing else is asked for, however late it is.
        assert_eq!(listed(&given(&past), minutes(90)), None);
        assert_eq!(given(&past).next_look(REMINDER_MAIL_WINDOW), None);
        past.push((minutes(60), outcome(1, None)));
        let state = given(&past);
        assert_eq!(state.next_look(REMINDER_MAIL_WINDOW), Some(ms(minutes(70))));
        assert_eq!(listed(&state, minutes(70) - 1), None);
        assert_eq!(listed(&state, minutes(70)), Some(vec!["n1".into(), "n2".into(), "n3".into()]));
    }

    #[test]
    fn neos_82_what_waits_for_the_window_can_still_be_acknowledged() {
        let mut past = vec![notified("n1", 0), notified("n2", 1_000), (3_600_000, elapsed(1))];
        past.extend([(3_600_000, outcome(1, None)), acknowledged("n2", 4_000_000)]);
        assert_eq!(given(&past).next_look(REMINDER_MAIL_WINDOW), None);
        assert_eq!(listed(&given(&past), 4_200_000), None);
    }

    #[test]
    fn the_window_begins_when_the_mail_was_sent_and_a_failed_one_does_not_use_it() {
        let begun = [notified("n1", 0), notified("n2", 1_000), (3_600_000, elapsed(1))];
        let late = given(&[&begun[..], &[(5_000_000, outcome(1, None))]].concat());
        assert_eq!(late.next_look(REMINDER_MAIL_WINDOW), Some(ms(5_600_000)));
        let failed = given(&[&begun[..], &[(3_700_000, outcome(1, Some("550")))]].concat());
        assert_eq!(listed(&failed, 3_700_000), Some(vec!["n2".to_owned()]));
        // A clock that was set back while it was sent does not shorten it.
        let back = given(&[&begun[..], &[(3_500_000, outcome(1, None))]].concat());
        assert_eq!(back.next_look(REMINDER_MAIL_WINDOW), Some(ms(4_200_000)));
    }

    #[test]
    fn what_is_in_a_mail_stays_there_and_late_outcomes_change_nothing() {
        let state = given(&[notified("n1", 0), (3_600_000, elapsed(1))]);
        let (at, acknowledge) = acknowledged("n1", 3_600_001);
        assert_eq!(decide(&state, &acknowledge, ms(at)), []);
        assert_eq!(decide(&state, &outcome(2, None), ms(at)), []);
        let sent = given(&[notified("n1", 0), (3_600_000, elapsed(1)), (3_600_001, outcome(1, None))]);
        assert_eq!(decide(&sent, &outcome(1, Some("x")), ms(at)), []);
    }

    #[test]
    fn n_24_no_address_is_said_once_and_uses_no_window() {
        let nowhere = ReminderCommand::TimerElapsed {
            mail_id: mail(1),
            unreachable: Some("no-address".into()),
            is_quiet: false,
        };
        let state = given(&[notified("n1", 0)]);
        let [ReminderEvent::ReminderEmailCouldNotBeSent(event)] =
            &decide(&state, &nowhere, ms(3_600_000))[..]
        else {
            panic!("nothing was said")
        };
        assert_eq!(
            (event.reason.as_str(), event.notification_ids.as_slice()),
            ("no-address", &["n1".to_owned()][..])
        );
        let state = given(&[notified("n1", 0), (3_600_000, nowhere), notified("n2", 10_000)]);
        assert_eq!(listed(&state, 3_610_000), Some(vec!["n2".to_owned()]));
    }

    #[test]
    fn quiet_hours_put_a_mail_off() {
        let state = given(&[notified("n1", 0)]);
        let quiet = ReminderCommand::TimerElapsed { mail_id: mail(1), unreachable: None, is_quiet: true };
        assert_eq!(decide(&state, &quiet, ms(3_600_000)), []);
        assert_eq!(listed(&state, 30_000_000), Some(vec!["n1".to_owned()]));
    }

    #[test]
    fn one_mail_has_an_end_and_the_oldest_come_first() {
        let mut past: Vec<_> = (0..600).map(|n| notified(&format!("n{:03}", 999 - n), n)).collect();
        let first = listed(&given(&past), 4_000_000).unwrap();
        assert_eq!((first.len(), first[0].as_str()), (MOST_NOTICES, "n999"));
        past.extend([(4_000_000, elapsed(1)), (4_000_000, outcome(1, None))]);
        assert_eq!(listed(&given(&past), 4_600_000).unwrap().len(), 100);
    }
}
