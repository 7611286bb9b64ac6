//! A notification's way: from what a client asks for over messages and a saga to its end, and to the team if it fails.

use std::sync::Arc;

use notification_subscribers::operations::{SucceededInSendingSlackMessageEvent, stream_of};
use notification_subscribers::policy::Policy;
use notification_subscribers::streams::Class;
use notification_subscribers::{
    AudienceOptedOutOfAllChannelsEvent, FailedNotificationSentToInternalTeamEvent,
    FailedToSendNotificationEvent, FailureOutcome, MessageStatus, NotificationRequest, PreferenceChange,
    RecipientCommand, SagaCompletedEvent, SucceededInSendingNotificationEvent, TIMED_OUT, Tracking,
    TrackingStatus, TrackingView, accept,
};
use store::{DomainEvent, Event, ExpectedVersion, Json, NewEvent};
use subscription_engine::{Answer, Criteria};
use testkit::{Stage, T0, both};
use uuid::Uuid;

use crate::given::all_events;
use crate::postbox::{Postbox, sent};
use crate::reminders::{at, minutes, notify, recipient, told, with_address};

const TEAM: &str = "team@example.org";

fn with_team() -> Policy {
    Policy { team_address: Some(TEAM.to_owned()), ..Policy::default() }
}

async fn with_slack(stage: &Stage, user: &str) {
    recipient(stage, user, RecipientCommand::SetSlack { to: format!("C-{user}") }).await;
}

fn news(entity: &str) -> NotificationRequest {
    NotificationRequest {
        entity_id: entity.to_owned(),
        subject: "News".to_owned(),
        body: "They are good.".to_owned(),
    }
}

async fn ask(stage: &Stage, entity: &str) -> Uuid {
    accept(stage.store(), &news(entity), None).await.unwrap().tracking_id
}

async fn view(stage: &Stage, tracking_id: Uuid) -> TrackingView {
    let tracked = Tracking::new(stage.store().clone()).of(tracking_id).await.unwrap().unwrap();
    tracked.json.to().unwrap()
}

/// The types of what happened to a notification, in order, without the name of the context.
fn types(events: &[Event], tracking_id: Uuid) -> Vec<&str> {
    let tracking_id = tracking_id.to_string();
    events
        .iter()
        .filter(|event| event.correlation_id.as_ref() == Some(&tracking_id))
        .map(|event| event.event_type.strip_prefix("Acme.Notifications:").unwrap())
        .collect()
}

/// That these stand there in this order, whatever is in between.
#[track_caller]
fn in_order(types: &[&str], wanted: &[&str]) {
    let mut rest = types.iter();
    for wanted in wanted {
        assert!(rest.any(|found| found == wanted), "{wanted} is missing or out of order: {types:?}");
    }
}

fn count_of(types: &[&str], wanted: &str) -> usize {
    types.iter().filter(|found| **found == wanted).count()
}

both! {
    async fn n20_sent_by_both_channels(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &with_team()).await;
        with_address(&stage, "alice").await;
        with_slack(&stage, "alice").await;
        let tracking_id = ask(&stage, "alice").await;
        stage.run_through_crashes().await;
        let events = all_events(stage.store()).await;
        let types = types(&events, tracking_id);
        in_order(&types, &[
            "SendNotificationToEntityOp", "RequestedNotificationToBeSentEvent", "SendEmailOp",
            "SendSlackMessageOp", "SucceededInSendingNotificationEvent",
        ]);
        in_order(&types, &["SendEmailOp", "SucceededInSendingEmailEvent", "SucceededInSendingNotificationEvent"]);
        in_order(&types, &[
            "SendSlackMessageOp", "SucceededInSendingSlackMessageEvent", "SucceededInSendingNotificationEvent",
        ]);
        for one in types.iter().filter(|one| **one != "SagaOperationFinishedEvent") {
            assert_eq!(count_of(&types, one), 1, "{one}");
        }
        let [mail] = &postbox.mails()[..] else { panic!("not one mail") };
        assert_eq!((mail.to.as_str(), mail.subject.as_str()), ("alice@example.org", "News"));
        assert_eq!((mail.text.as_str(), mail.decided_at), ("They are good.", T0));
        let [message] = &postbox.messages()[..] else { panic!("not one message") };
        assert_eq!((message.to.as_str(), message.text.as_str()), ("C-alice", "News\nThey are good."));
        let view = view(&stage, tracking_id).await;
        assert_eq!(view.status, TrackingStatus::Sent);
        assert!(view.channels.iter().all(|message| message.status == MessageStatus::Sent));
        assert_eq!((view.channels.len(), view.outcome, view.team), (2, None, None));
    }

    /// NAOS-16, NAOS-01: everything has the tracking id as its correlation and a cause, and is in a stream of the class
    /// that may hold it.
    async fn naos_16_everything_is_found_by_the_tracking_id(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &with_team()).await;
        with_address(&stage, "alice").await;
        with_slack(&stage, "alice").await;
        postbox.answer(|to| if to == "C-alice" { Answer::Failed { why: "is_archived".into() } } else { sent() });
        let tracking_id = ask(&stage, "alice").await;
        stage.run().await;
        let events = all_events(stage.store()).await;
        let of_recipient = |event: &&Event| event.stream.category() != "recipient";
        for event in events.iter().filter(of_recipient) {
            assert_eq!(event.correlation_id, Some(tracking_id.to_string()), "{}", event.event_type);
            let is_first = event.stream.category() == "notification_clientop";
            assert_eq!(event.causation_id.is_none(), is_first, "{}", event.event_type);
            assert!(Class::of(&event.stream).unwrap().holds(&event.event_type), "{}", event.event_type);
        }
        assert!(events.len() > 12);
    }

    async fn n21_partial_failure_is_told_to_the_team(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &with_team()).await;
        with_address(&stage, "alice").await;
        with_slack(&stage, "alice").await;
        postbox.answer(|to| if to == "C-alice" { Answer::Failed { why: "channel_not_found".into() } } else { sent() });
        let tracking_id = ask(&stage, "alice").await;
        stage.run_through_crashes().await;
        let events = all_events(stage.store()).await;
        let types = types(&events, tracking_id);
        in_order(&types, &[
            "FailedToSendSlackMessageEvent", "FailedToSendNotificationEvent", "TellInternalTeamOp",
            "FailedNotificationSentToInternalTeamEvent",
        ]);
        let failed = told::<FailedToSendNotificationEvent>(&events);
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].outcome, FailureOutcome::SentOnSomePreparedChannels);
        let reasons: Vec<_> = failed[0].per_channel.iter().map(|one| (one.succeeded, one.reason.as_deref())).collect();
        assert_eq!(reasons, [(true, None), (false, Some("channel_not_found"))]);
        assert_eq!(told::<FailedNotificationSentToInternalTeamEvent>(&events).len(), 1);
        assert_eq!(postbox.messages().len(), 1);
        let mails = postbox.mails();
        assert_eq!(mails.iter().map(|mail| mail.to.as_str()).collect::<Vec<_>>(), ["alice@example.org", TEAM]);
        assert!(mails[1].text.contains("channel_not_found") && mails[1].text.contains(&tracking_id.to_string()));
        let view = view(&stage, tracking_id).await;
        assert_eq!((view.status, view.outcome), (TrackingStatus::Failed, Some(failed[0].outcome)));
        assert_eq!(view.team.unwrap().status, MessageStatus::Sent);
    }

    /// N-21: the mail to the team fails as well: that is recorded and shown, and nothing follows.
    async fn n21_a_failed_alarm_is_no_new_alarm(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &with_team()).await;
        with_address(&stage, "alice").await;
        postbox.answer(|_| Answer::Failed { why: "550 no".into() });
        let tracking_id = ask(&stage, "alice").await;
        stage.run().await;
        at(&stage, minutes(48 * 60)).await;
        let events = all_events(stage.store()).await;
        let types = types(&events, tracking_id);
        assert_eq!(count_of(&types, "TellInternalTeamOp"), 1);
        assert_eq!(count_of(&types, "FailedToSendNotificationEvent"), 1);
        assert_eq!(count_of(&types, "FailedToSendEmailEvent"), 2);
        assert_eq!(postbox.mails().len(), 2);
        let view = view(&stage, tracking_id).await;
        assert_eq!(view.outcome, Some(FailureOutcome::CouldNotSendOnAnyPreparedChannel));
        let team = view.team.unwrap();
        assert_eq!((team.status, team.reason.as_deref()), (MessageStatus::Failed, Some("550 no")));
    }

    /// Without a team nobody is told, and what waits in the log says so.
    async fn naos_27_without_a_team_nobody_is_told(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &Policy::default()).await;
        let tracking_id = ask(&stage, "carol").await;
        stage.run().await;
        let events = all_events(stage.store()).await;
        assert_eq!(count_of(&types(&events, tracking_id), "TellInternalTeamOp"), 1);
        assert_eq!(postbox.mails(), []);
        assert_eq!(view(&stage, tracking_id).await.team, None);
    }

    async fn n24_opted_out_and_no_address(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &with_team()).await;
        with_address(&stage, "bob").await;
        with_slack(&stage, "bob").await;
        let none = PreferenceChange { email: Some(false), slack: Some(false), ..Default::default() };
        recipient(&stage, "bob", RecipientCommand::SetPreferences(none)).await;
        let bob = ask(&stage, "bob").await;
        let carol = ask(&stage, "carol").await;
        for user in ["bob", "carol"] {
            notify(&stage, user, user, T0).await;
        }
        stage.run().await;
        at(&stage, minutes(61)).await;
        let events = all_events(stage.store()).await;
        let opted_out = told::<AudienceOptedOutOfAllChannelsEvent>(&events);
        assert_eq!((opted_out.len(), opted_out[0].tracking_id), (1, bob));
        let failed = told::<FailedToSendNotificationEvent>(&events);
        assert_eq!((failed.len(), failed[0].tracking_id), (1, carol));
        assert_eq!(failed[0].outcome, FailureOutcome::CouldNotPrepareToSendOnAnyChannel);
        assert!(failed[0].per_channel.iter().all(|one| one.reason.as_deref() == Some("no-address")));
        assert_eq!(told::<SagaCompletedEvent>(&events), []);
        assert_eq!(postbox.mails().iter().map(|mail| mail.to.as_str()).collect::<Vec<_>>(), [TEAM]);
        assert_eq!(view(&stage, bob).await.status, TrackingStatus::OptedOut);
        assert_eq!(view(&stage, carol).await.status, TrackingStatus::Failed);
    }

    /// One address is enough; what is missing is said.
    async fn naos_18_by_the_one_channel_that_there_is(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &with_team()).await;
        with_slack(&stage, "alice").await;
        let tracking_id = ask(&stage, "alice").await;
        stage.run().await;
        assert_eq!((postbox.mails().len(), postbox.messages().len()), (0, 1));
        let view = view(&stage, tracking_id).await;
        assert_eq!((view.status, view.skipped.len()), (TrackingStatus::Sent, 1));
    }

    /// Silence becomes a failure when the deadline is over, and what comes later changes nothing.
    async fn naos_22_the_deadline_of_a_saga(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &with_team()).await;
        with_address(&stage, "alice").await;
        with_slack(&stage, "alice").await;
        postbox.answer(|to| match to {
            "C-alice" => Answer::Retry { why: "ratelimited".into(), after: Some(7 * 24 * std::time::Duration::from_secs(3_600)) },
            _ => sent(),
        });
        let tracking_id = ask(&stage, "alice").await;
        stage.run().await;
        at(&stage, minutes(24 * 60 - 1)).await;
        assert_eq!(view(&stage, tracking_id).await.status, TrackingStatus::Sending);
        at(&stage, minutes(24 * 60)).await;
        let failed = told::<FailedToSendNotificationEvent>(&all_events(stage.store()).await);
        assert_eq!(failed[0].outcome, FailureOutcome::SentOnSomePreparedChannels);
        assert_eq!(failed[0].per_channel[1].reason.as_deref(), Some(TIMED_OUT));
        postbox.answer(|_| sent());
        at(&stage, minutes(8 * 24 * 60)).await;
        let events = all_events(stage.store()).await;
        assert_eq!(told::<SucceededInSendingSlackMessageEvent>(&events).len(), 1);
        assert_eq!(told::<SagaCompletedEvent>(&events).len(), 1);
        assert_eq!(told::<SucceededInSendingNotificationEvent>(&events), []);
    }

    /// What belongs to no saga, and what comes twice, changes nothing.
    async fn naos_22_foreign_and_double_results_change_nothing(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &with_team()).await;
        with_address(&stage, "alice").await;
        with_slack(&stage, "alice").await;
        let tracking_id = ask(&stage, "alice").await;
        stage.run().await;
        let operation_id = postbox.messages()[0].operation_id;
        let count = all_events(stage.store()).await.len();
        for (operation_id, correlation_id) in [
            (operation_id, Some(tracking_id.to_string())),
            (Uuid::new_v4(), Some(tracking_id.to_string())),
            (operation_id, Some(Uuid::new_v4().to_string())),
            (operation_id, Some("not an id".to_owned())),
            (operation_id, None),
        ] {
            let result = SucceededInSendingSlackMessageEvent {
                operation_id,
                to: "C-alice".into(),
                response: "ok".into(),
            };
            let event = NewEvent { correlation_id, ..NewEvent::of(&result).unwrap() };
            let stream = stream_of("slack", operation_id);
            stage.store().append(&stream, ExpectedVersion::Any, vec![event]).await.unwrap();
        }
        stage.run().await;
        assert_eq!(all_events(stage.store()).await.len(), count + 5);
    }

    /// N-25: one key is one operation, whoever asks how often at the same time; another body is refused.
    async fn n25_a_key_queues_once(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &with_team()).await;
        with_address(&stage, "alice").await;
        let store = Arc::new(stage.store().clone());
        let asked = (0..20).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { accept(&store, &news("alice"), Some("k2")).await.unwrap() })
        });
        let mut ids = std::collections::BTreeSet::new();
        let mut new = 0;
        for asked in asked.collect::<Vec<_>>() {
            let accepted = asked.await.unwrap();
            ids.insert(accepted.tracking_id);
            new += usize::from(!accepted.replayed);
        }
        assert_eq!((ids.len(), new), (1, 1));
        let other = NotificationRequest { body: "They are bad.".into(), ..news("alice") };
        let refused = accept(&store, &other, Some("k2")).await.unwrap_err();
        assert_eq!(refused.to_string(), "the idempotency key \"k2\" was used for another request; use a new one");
        stage.run().await;
        assert_eq!(postbox.mails().len(), 1);
        assert!(accept(&store, &news("alice"), Some("k2")).await.unwrap().replayed);
        let first = accept(&store, &news("alice"), Some("k3")).await.unwrap();
        assert!(!first.replayed && !ids.contains(&first.tracking_id));
    }

    /// An operation under a strange correlation could never be tracked: it is set aside, and nobody else waits.
    async fn naos_16_an_operation_that_cannot_be_tracked_is_set_aside(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &with_team()).await;
        with_address(&stage, "alice").await;
        let payload = serde_json::json!({
            "trackingId": Uuid::new_v4(), "entityId": "alice", "subject": "x", "body": "x"
        });
        let strange = NewEvent {
            correlation_id: Some("mine".to_owned()),
            ..NewEvent::new(
                notification_subscribers::SendNotificationToEntityOp::TYPE,
                Json::of(&payload).unwrap(),
            )
        };
        let stream = crate::given::stream("notification_clientop-strange");
        stage.store().append(&stream, ExpectedVersion::Any, vec![strange]).await.unwrap();
        let tracking_id = ask(&stage, "alice").await;
        at(&stage, minutes(10)).await;
        assert_eq!(view(&stage, tracking_id).await.status, TrackingStatus::Sent);
        assert_eq!(postbox.mails().len(), 1);
        let overview = stage.engine().status(&Criteria::id("send_notification")).await.unwrap();
        assert_eq!(overview[0].subscription.letters.open, 1);
    }

    /// N-18: the views are built anew from the log, byte for byte, and nothing is sent again.
    async fn n18_a_replay_sends_nothing(database: TestDatabase) {
        let (stage, postbox) = Postbox::stage(database, &with_team()).await;
        with_address(&stage, "alice").await;
        let mut ids = Vec::new();
        for _ in 0..20 {
            ids.push(ask(&stage, "alice").await);
        }
        ids.push(ask(&stage, "carol").await);
        stage.run().await;
        let tracking = Tracking::new(stage.store().clone());
        let mut before = Vec::new();
        for id in &ids {
            before.push(tracking.of(*id).await.unwrap().unwrap());
        }
        assert_eq!(postbox.mails().len(), 21);
        stage.engine().remove(&Criteria::id("tracking_view_1"), "test").await.unwrap();
        stage.engine().set_up(&Criteria::all(), false).await.unwrap();
        stage.run().await;
        for (id, before) in ids.iter().zip(before) {
            assert_eq!(tracking.of(*id).await.unwrap().unwrap(), before);
        }
        assert_eq!(postbox.mails().len(), 21);
    }
}
