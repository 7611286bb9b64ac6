//! Reminders at random: whoever is notified and acknowledges whenever, however time jumps and processes die, and
//! whatever becomes of the mails.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use notification_subscribers::policy::{Policy, REMINDER_DUE_AFTER, REMINDER_MAIL_WINDOW};
use notification_subscribers::{
    ReminderEmailCouldNotBeSent, ReminderEmailWasSent, ReminderMailWasRequested,
    UserHasAcknowledgedNotification, UserWasNotified,
};
use store::{Event, Timestamp};
use subscription_engine::Answer;
use testkit::{Random, T0, both};

use crate::given::all_events;
use crate::postbox::{Postbox, sent};
use crate::reminders::{acknowledge, asleep_until, at, ms, notify, with_address};

const USERS: u64 = 4;
const ROUNDS: u64 = 40;

both! {
    /// NEOS-08, NEOS-09, NEOS-82: never two mails within ten minutes, never one before the hour is over or for what
    /// was acknowledged, everything else in exactly one mail.
    async fn neos_82_anything_at_any_time(database: TestDatabase) {
        let seed = Random::seed();
        let mut random = Random::from_seed(seed);
        let (stage, postbox) = Postbox::stage(database, &Policy::default()).await;
        for user in 0..USERS {
            with_address(&stage, &format!("u{user}")).await;
        }
        let luck = Arc::new(Mutex::new(Random::from_seed(seed.wrapping_add(1))));
        postbox.answer(move |_| match luck.lock().unwrap().below(6) {
            0 => Answer::Retry { why: "451".into(), after: Some(Duration::from_secs(400)) },
            1 => Answer::Failed { why: "550".into() },
            2 => Answer::Unknown { why: "lost".into() },
            _ => sent(),
        });
        let mut model = Model::default();
        let mut now = 0_u64;
        for round in 0..ROUNDS {
            for number in 0..random.below(4) {
                let user = format!("u{}", random.below(USERS));
                let id = format!("{user}-{round}-{number}");
                // Some are heard of long after they happened.
                let happened = ms(now.saturating_sub(random.below(2) * random.below(5_000_000)));
                notify(&stage, &user, &id, happened).await;
                model.pending.push((user, id));
            }
            for _ in 0..random.below(3) {
                if !model.pending.is_empty() {
                    let (user, id) = model.pending.swap_remove(random.below(model.pending.len() as u64) as usize);
                    acknowledge(&stage, &user, &id).await;
                }
            }
            match random.below(4) {
                0 => stage.run().await,
                1 => stage.run_through_crashes().await,
                2 => {
                    now += random.below(1_200_000);
                    asleep_until(&stage, ms(now)).await;
                    stage.run_through_crashes().await;
                }
                _ => {
                    now += random.below(1_200_000);
                    at(&stage, ms(now)).await;
                }
            }
            model.check(&all_events(stage.store()).await, seed);
        }
        postbox.answer(|_| sent());
        at(&stage, ms(now + 10 * 24 * 3_600_000)).await;
        let events = all_events(stage.store()).await;
        model.check(&events, seed);
        model.check_nothing_is_forgotten(&events, seed);
    }
}

/// What must be true of a log of reminders, whatever has happened.
#[derive(Default)]
struct Model {
    /// Notified and not acknowledged.
    pending: Vec<(String, String)>,
}

impl Model {
    #[track_caller]
    fn check(&self, events: &[Event], seed: u64) {
        let mut happened_at: BTreeMap<String, Timestamp> = BTreeMap::new();
        let mut acknowledged = BTreeSet::new();
        let mut reminded = BTreeSet::new();
        let mut last_sent: BTreeMap<String, Timestamp> = BTreeMap::new();
        let mut in_flight: BTreeSet<String> = BTreeSet::new();
        for event in events {
            if let Some(notified) = event.decode::<UserWasNotified>() {
                let notified = notified.unwrap();
                happened_at.insert(notified.notification_id, notified.timestamp);
            } else if let Some(done) = event.decode::<UserHasAcknowledgedNotification>() {
                acknowledged.insert(done.unwrap().notification_id);
            } else if let Some(mail) = event.decode::<ReminderMailWasRequested>() {
                let mail = mail.unwrap();
                assert!(in_flight.insert(mail.user_id.clone()), "seed {seed}: two at once: {mail:?}");
                for id in &mail.notification_ids {
                    assert!(!acknowledged.contains(id), "seed {seed}: {id} was acknowledged: {mail:?}");
                    assert!(reminded.insert(id.clone()), "seed {seed}: {id} twice");
                    let due = happened_at[id].plus(REMINDER_DUE_AFTER);
                    assert!(due <= mail.decided_at, "seed {seed}: {id} too early: {mail:?}");
                }
                let last = last_sent.get(&mail.user_id).map_or(T0, |at| at.plus(REMINDER_MAIL_WINDOW));
                assert!(mail.decided_at >= last, "seed {seed}: two within ten minutes: {mail:?}");
            } else if let Some(mail) = event.decode::<ReminderEmailWasSent>() {
                let mail = mail.unwrap();
                assert!(in_flight.remove(&mail.user_id), "seed {seed}: {mail:?}");
                last_sent.insert(mail.user_id, mail.timestamp);
            } else if let Some(mail) = event.decode::<ReminderEmailCouldNotBeSent>() {
                let mail = mail.unwrap();
                assert!(in_flight.remove(&mail.user_id), "seed {seed}: {mail:?}");
            }
        }
    }

    /// Everything that nobody has acknowledged was in a mail.
    #[track_caller]
    fn check_nothing_is_forgotten(&self, events: &[Event], seed: u64) {
        let requested: Vec<ReminderMailWasRequested> = crate::reminders::told(events);
        let reminded: BTreeSet<&str> =
            requested.iter().flat_map(|mail| mail.notification_ids.iter().map(String::as_str)).collect();
        for (_, id) in &self.pending {
            assert!(reminded.contains(id.as_str()), "seed {seed}: {id} was forgotten");
        }
    }
}
