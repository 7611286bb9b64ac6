//! Reminders: who does not acknowledge gets a mail, once, and never two within ten minutes.

use std::time::Duration;

use notification_subscribers::operations::SendEmailOp;
use notification_subscribers::policy::Policy;
use notification_subscribers::{
    PreferenceChange, Recipient, RecipientCommand, ReminderEmailCouldNotBeSent, ReminderEmailWasSent,
    ReminderWasCancelled, ReminderWasScheduled, UserHasAcknowledgedNotification, UserId, UserWasNotified,
    recipient_stream, why_suppressed,
};
use store::{DomainEvent, Event, Timestamp};
use subscription_engine::{Answer, Criteria};
use testkit::{Stage, T0, TestDatabase, both};

use crate::given::all_events;
use crate::postbox::{Postbox, sent};

const PATIENCE: Duration = Duration::from_secs(60);

/// So many milliseconds after T0.
pub(crate) fn ms(millis: u64) -> Timestamp {
    T0.plus(Duration::from_millis(millis))
}

/// So many minutes after T0.
pub(crate) fn minutes(minutes: u64) -> Timestamp {
    ms(minutes * 60_000)
}

pub(crate) async fn notify(stage: &Stage, user: &str, id: &str, at: Timestamp) {
    let notified = UserWasNotified {
        user_id: user.into(),
        notification_id: id.into(),
        message: format!("Message {id}"),
        timestamp: at,
    };
    stage.given(&format!("user-{user}"), &[notified]).await;
}

pub(crate) async fn acknowledge(stage: &Stage, user: &str, id: &str) {
    let acknowledged = UserHasAcknowledgedNotification { user_id: user.into(), notification_id: id.into() };
    stage.given(&format!("user-{user}"), &[acknowledged]).await;
}

pub(crate) async fn recipient(stage: &Stage, user: &str, command: RecipientCommand) {
    let user = UserId::new(user).unwrap();
    let recipients = aggregate::Repository::<Recipient>::new(stage.store().clone());
    let provenance = aggregate::Provenance::default();
    recipients.execute(&recipient_stream(&user), &command, &user, &provenance).await.unwrap();
}

pub(crate) async fn with_address(stage: &Stage, user: &str) {
    let address = format!("{user}@example.org");
    recipient(stage, user, RecipientCommand::SetEmail { address }).await;
}

/// Moves the clock, stopping wherever something is due, until everything is done.
pub(crate) async fn at(stage: &Stage, time: Timestamp) {
    stage.engine().set_clock(time, PATIENCE).await.unwrap();
    stage.run().await;
}

/// Moves the clock while nobody works.
pub(crate) async fn asleep_until(stage: &Stage, time: Timestamp) {
    stage.store().clock().set(time).await.unwrap();
}

/// What a mail reminds of.
pub(crate) fn listed(mail: &SendEmailOp) -> Vec<&str> {
    mail.reminds_of.iter().flat_map(|of| of.notification_ids.iter().map(String::as_str)).collect()
}

/// All events of a type.
pub(crate) fn told<E: DomainEvent>(events: &[Event]) -> Vec<E> {
    events.iter().filter_map(Event::decode::<E>).map(Result::unwrap).collect()
}

both! {
    async fn n12_a_reminder_after_one_hour(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &Policy::default()).await;
        with_address(&stage, "user1").await;
        notify(&stage, "user1", "n1", T0).await;
        at(&stage, ms(3_599_999)).await;
        assert_eq!(postbox.mails(), []);
        at(&stage, ms(3_600_000)).await;
        let [mail] = &postbox.mails()[..] else { panic!("not one mail") };
        assert_eq!((mail.to.as_str(), listed(mail)), ("user1@example.org", vec!["n1"]));
        assert_eq!(mail.decided_at, ms(3_600_000));
        assert!(mail.text.contains("Message n1") && mail.text.contains("2026-01-01 00:00 (UTC), id: n1"));
        let reminded = told::<ReminderEmailWasSent>(&all_events(stage.store()).await);
        assert_eq!(reminded.len(), 1);
        assert_eq!((reminded[0].mail_id, reminded[0].timestamp), (mail.operation_id, ms(3_600_000)));
        at(&stage, minutes(25 * 60)).await;
        assert_eq!(postbox.mails().len(), 1);
    }

    async fn n13_acknowledged_before(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &Policy::default()).await;
        with_address(&stage, "user1").await;
        notify(&stage, "user1", "n1", T0).await;
        at(&stage, minutes(30)).await;
        acknowledge(&stage, "user1", "n1").await;
        at(&stage, minutes(120)).await;
        assert_eq!(postbox.mails(), []);
        let events = all_events(stage.store()).await;
        let of_stream: Vec<&str> = events
            .iter()
            .filter(|event| event.stream.as_str() == "reminder-user1")
            .map(|event| event.event_type.as_str())
            .collect();
        assert_eq!(of_stream, [ReminderWasScheduled::TYPE, ReminderWasCancelled::TYPE]);
    }

    /// N-13 to the millisecond: what is in the log when the timer is seen due counts, also while nobody worked.
    async fn n13_acknowledged_at_the_last_moment(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &Policy::default()).await;
        with_address(&stage, "user1").await;
        notify(&stage, "user1", "n1", T0).await;
        at(&stage, ms(3_599_999)).await;
        acknowledge(&stage, "user1", "n1").await;
        asleep_until(&stage, ms(3_600_000)).await;
        stage.run().await;
        assert_eq!(postbox.mails(), []);
    }

    async fn n14_aggregated(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &Policy::default()).await;
        with_address(&stage, "user1").await;
        for minute in 0..4 {
            at(&stage, minutes(minute)).await;
            notify(&stage, "user1", &format!("n{minute}"), minutes(minute)).await;
        }
        for minute in 4..=90 {
            at(&stage, minutes(minute)).await;
        }
        let mails = postbox.mails();
        let told: Vec<_> = mails.iter().map(|mail| (mail.decided_at, listed(mail))).collect();
        assert_eq!(told, [(minutes(60), vec!["n0"]), (minutes(70), vec!["n1", "n2", "n3"])]);
    }

    /// NEOS-09: the second mail at +600.000 s, not at +599.999 s; what is acknowledged meanwhile is not in it.
    async fn neos_09_the_window_to_the_millisecond(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &Policy::default()).await;
        with_address(&stage, "user1").await;
        for (id, millis) in [("n1", 0), ("n2", 1_000), ("n3", 2_000)] {
            notify(&stage, "user1", id, ms(millis)).await;
        }
        at(&stage, ms(3_600_000 + 599_999)).await;
        acknowledge(&stage, "user1", "n2").await;
        stage.run().await;
        assert_eq!(postbox.mails().len(), 1);
        at(&stage, ms(3_600_000 + 600_000)).await;
        assert_eq!(postbox.mails().iter().map(listed).collect::<Vec<_>>(), [["n1"], ["n3"]]);
    }

    /// N-16: stopped for thirty hours, with what was known before and what came just before the stop.
    async fn n16_downtime(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &Policy::default()).await;
        for user in ["a", "b", "c"] {
            with_address(&stage, user).await;
            for minute in 0..5 {
                notify(&stage, user, &format!("{user}{minute}"), minutes(minute * 2)).await;
                if minute == 2 {
                    stage.run().await;
                }
            }
        }
        asleep_until(&stage, minutes(30 * 60)).await;
        stage.run_through_crashes().await;
        at(&stage, minutes(40 * 60)).await;
        let mut lists: Vec<Vec<String>> = postbox
            .mails()
            .iter()
            .map(|mail| listed(mail).into_iter().map(ToOwned::to_owned).collect())
            .collect();
        lists.sort();
        let expected = ["a", "b", "c"].map(|user| (0..5).map(|n| format!("{user}{n}")).collect::<Vec<_>>());
        assert_eq!(lists, expected);
    }

    /// N-24: nowhere to send it, or not wanted: said once, and nothing is tried again.
    async fn n24_no_address_and_opted_out(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &Policy::default()).await;
        with_address(&stage, "bob").await;
        let off = PreferenceChange { reminders: Some(false), ..Default::default() };
        recipient(&stage, "bob", RecipientCommand::SetPreferences(off)).await;
        with_address(&stage, "dora").await;
        let bounced = RecipientCommand::SuppressAddress {
            address: "dora@example.org".into(),
            reason: "550 5.1.1".into(),
            operation_id: None,
        };
        recipient(&stage, "dora", bounced).await;
        for user in ["carol", "bob", "dora"] {
            notify(&stage, user, user, T0).await;
        }
        at(&stage, minutes(48 * 60)).await;
        assert_eq!(postbox.mails(), []);
        let events = all_events(stage.store()).await;
        let mut reasons: Vec<_> = told::<ReminderEmailCouldNotBeSent>(&events)
            .into_iter()
            .map(|event| (event.user_id, event.reason, event.notification_ids))
            .collect();
        reasons.sort();
        let said = |user: &str, reason: &str| (user.to_owned(), reason.to_owned(), vec![user.to_owned()]);
        let expected = [said("bob", "opted-out"), said("carol", "no-address"), said("dora", "suppressed")];
        assert_eq!(reasons, expected);
    }

    /// Whoever sends looks an address up, however it is written.
    async fn a_suppressed_address_is_found_by_whoever_sends(database: TestDatabase) {
        let (stage, _) = Postbox::stage(database, &Policy::default()).await;
        for reason in ["550 5.1.1", "again"] {
            let user = format!("user of {reason}");
            let (address, reason) = ("Dora@example.org".into(), reason.into());
            let bounced = RecipientCommand::SuppressAddress { address, reason, operation_id: None };
            recipient(&stage, &user, bounced).await;
        }
        stage.run_through_crashes().await;
        let mut tx = stage.store().begin().await.unwrap();
        let found = why_suppressed("dora@Example.org", &mut tx).await.unwrap();
        assert_eq!(found.as_deref(), Some("550 5.1.1"));
        assert_eq!(why_suppressed("alice@example.org", &mut tx).await.unwrap(), None);
        tx.rollback().await;
    }

    /// A mail that is tried again and again is one mail: nothing else is asked for meanwhile, and the window begins
    /// when it was taken. One that fails for good uses no window.
    async fn neos_82_retries_and_failures(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &Policy::default()).await;
        with_address(&stage, "user1").await;
        let later = Duration::from_secs(1_800);
        postbox.answer(move |_| Answer::Retry { why: "451".into(), after: Some(later) });
        notify(&stage, "user1", "n1", T0).await;
        notify(&stage, "user1", "n2", minutes(5)).await;
        at(&stage, minutes(80)).await;
        postbox.answer(|_| sent());
        at(&stage, minutes(99)).await;
        assert_eq!(postbox.mails().iter().map(listed).collect::<Vec<_>>(), [["n1"], ["n1"]]);
        postbox.answer(|_| Answer::Failed { why: "550 no".into() });
        at(&stage, minutes(100)).await;
        assert_eq!(postbox.mails().iter().map(listed).collect::<Vec<_>>(), [["n1"], ["n1"], ["n2"]]);
        notify(&stage, "user1", "n3", minutes(39)).await;
        stage.run().await;
        postbox.answer(|_| sent());
        notify(&stage, "user1", "n4", minutes(40)).await;
        stage.run().await;
        let events = all_events(stage.store()).await;
        let failed: Vec<_> = told::<ReminderEmailCouldNotBeSent>(&events);
        let failed: Vec<_> = failed.iter().map(|event| (event.reason.as_str(), &event.notification_ids[0][..])).collect();
        assert_eq!(failed, [("550 no", "n2"), ("550 no", "n3")]);
        let reminded: Vec<_> = told::<ReminderEmailWasSent>(&events);
        let reminded: Vec<_> = reminded.iter().map(|event| (event.timestamp, &event.notification_ids[0][..])).collect();
        assert_eq!(reminded, [(minutes(90), "n1"), (minutes(100), "n4")]);
    }

    /// Quiet hours put a reminder off until the morning of the recipient's wall clock; then everything is in one mail.
    async fn quiet_hours_put_reminders_off(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &Policy::default()).await;
        with_address(&stage, "user1").await;
        let change = PreferenceChange {
            time_zone: Some("Europe/Vienna".into()),
            quiet_hours: Some(Some("22:00-07:00".parse().unwrap())),
            ..Default::default()
        };
        recipient(&stage, "user1", RecipientCommand::SetPreferences(change)).await;
        notify(&stage, "user1", "n1", T0).await;
        notify(&stage, "user1", "n2", minutes(60)).await;
        at(&stage, minutes(6 * 60) ).await;
        let mails = postbox.mails();
        let told: Vec<_> = mails.iter().map(|mail| (mail.decided_at, listed(mail))).collect();
        assert_eq!(told, [(minutes(6 * 60), vec!["n1", "n2"])]);
        assert!(mails[0].text.contains("2026-01-01 01:00 (Europe/Vienna), id: n1"), "{}", mails[0].text);
    }

    /// Whatever a user is called, they are reminded.
    async fn odd_user_ids_are_reminded(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &Policy::default()).await;
        let long = "x".repeat(250);
        for (number, user) in ["a,b-c %d", "ü/💌", &long].into_iter().enumerate() {
            let address = format!("u{number}@example.org");
            recipient(&stage, user, RecipientCommand::SetEmail { address }).await;
            notify(&stage, user, &format!("n{number}"), T0).await;
        }
        at(&stage, minutes(60)).await;
        let mails = postbox.mails();
        let mut told: Vec<_> = mails.iter().map(|mail| (mail.to.as_str(), listed(mail))).collect();
        told.sort();
        let expected =
            [("u0@example.org", ["n0"]), ("u1@example.org", ["n1"]), ("u2@example.org", ["n2"])];
        assert_eq!(told, expected.map(|(to, ids)| (to, ids.to_vec())));
    }

    /// What cannot be read of one user is set aside, and holds up nobody else.
    async fn a_broken_event_holds_up_its_user_only(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &Policy::default()).await;
        with_address(&stage, "user2").await;
        let broken = store::NewEvent::new(UserWasNotified::TYPE, store::Json::parse("{}").unwrap());
        let stream = crate::given::stream("user-user1");
        stage.store().append(&stream, store::ExpectedVersion::Any, vec![broken]).await.unwrap();
        notify(&stage, "user2", "n2", T0).await;
        stage.engine().set_clock(minutes(61), PATIENCE).await.unwrap();
        assert_eq!(postbox.mails().iter().map(listed).collect::<Vec<_>>(), [["n2"]]);
        let letters = stage.engine().status(&Criteria::id("reminder_schedule")).await.unwrap();
        assert_eq!(letters[0].subscription.letters.open, 1);
    }
}

/// Another setting is another time.
#[tokio::test]
async fn o04_the_numbers_are_settings() {
    let policy = Policy { reminder_due_after: Duration::from_secs(60), ..Policy::default() };
    let (stage, postbox) = Postbox::stage(TestDatabase::sqlite(), &policy).await;
    with_address(&stage, "user1").await;
    notify(&stage, "user1", "n1", T0).await;
    at(&stage, minutes(1)).await;
    assert_eq!(postbox.mails().len(), 1);
}
