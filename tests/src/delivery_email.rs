//! Mails, against a server that answers as servers do: which answers are tried again, when, and with which bytes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use notification_subscribers::delivery::{Attempts, DeliverySettings, Suppressions};
use notification_subscribers::operations::{
    EmailAttemptDeferredEvent, EmailIsInDoubtEvent, FailedToSendEmailEvent, RemindsOf, SendEmailOp,
    SucceededInSendingEmailEvent, Unsubscribe,
};
use notification_subscribers::{
    DeliveryFilter, DeliveryLog, DeliveryStatus, UnsubscribeLinks, UserHasAcknowledgedNotification,
    UserWasNotified,
};
use store::{ExpectedVersion, Json, NewEvent, Secret, Tx};
use subscription_engine::{BoxError, Criteria, EffectStatus, InDoubt, Status};
use testkit::{MailServer, Moment, Reaction, T0, both};

use crate::delivery::{
    after_t0, all_of, ask_mail, at, mail, mailing, run, seconds, system, system_with, told,
};
use crate::effects::{ledger, statuses};
use crate::engine::{Running, look, status};
use crate::given::stream;

/// Says this of this recipient so many times, then what is usual.
fn says(to: &'static str, times: usize, reaction: Reaction) -> impl FnMut(&Moment) -> Reaction + Send {
    let mut left = times;
    move |moment| {
        let is_meant = *moment == Moment::Recipient(to.to_owned()) && left > 0;
        left -= usize::from(is_meant);
        if is_meant { reaction } else { Reaction::Usual }
    }
}

/// The settings with the same attempts but another policy for what is in doubt.
fn holding(mut settings: DeliverySettings) -> DeliverySettings {
    let attempts = Attempts { in_doubt: InDoubt::Hold, ..Attempts::default() };
    settings.email = settings.email.map(|email| email.with_attempts(attempts));
    settings
}

both! {
    /// N-22: 451 twice and then 250: three attempts at their times, the same bytes under one Message-ID.
    async fn n22_what_is_deferred_is_tried_again_on_time(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, MailServer::start().await.unwrap());
        let engine = system(&store, &mailing(&server)).await;
        let greylisted = Reaction::Say("451 4.7.1 come back later");
        server.react({
            let mut left = 2;
            move |moment| match moment {
                Moment::Mail(_) if left > 0 => {
                    left -= 1;
                    greylisted
                }
                _ => Reaction::Usual,
            }
        });
        let operation = mail("a@b.test");
        ask_mail(&store, &operation).await;
        run(&engine).await;
        assert_eq!(server.asked_for("a@b.test"), 1);
        at(&engine, Duration::from_millis(59_999)).await;
        assert_eq!(server.asked_for("a@b.test"), 1);
        at(&engine, seconds(60)).await;
        assert_eq!(server.asked_for("a@b.test"), 2);
        at(&engine, seconds(60 + 299)).await;
        assert_eq!(server.asked_for("a@b.test"), 2);
        at(&engine, seconds(60 + 300)).await;
        assert_eq!(server.asked_for("a@b.test"), 3);
        at(&engine, seconds(24 * 3_600)).await;

        let received = server.received();
        assert_eq!(received.len(), 3);
        assert!(received.iter().all(|mail| *mail == received[0]), "{received:#?}");
        let id = operation.operation_id;
        assert!(received[0].text.contains(&format!("Message-ID: <{id}@example.com>\r\n")), "{}", received[0].text);
        assert_eq!(received[0].from, format!("herald+{}@example.com", id.simple()));
        assert!(received[0].text.ends_with("\r\n\r\nHello\r\n.\r\nworld\r\n"), "{}", received[0].text);
        let deferred = all_of::<EmailAttemptDeferredEvent>(&store).await;
        let said: Vec<_> = deferred.iter().map(|it| (it.attempt, it.reason.as_str(), after_t0(it.retry_at))).collect();
        assert_eq!(said, [
            (1, "451 4.7.1 come back later", seconds(60)),
            (2, "451 4.7.1 come back later", seconds(360)),
        ]);
        let sent = all_of::<SucceededInSendingEmailEvent>(&store).await.remove(0);
        assert_eq!((sent.to.as_str(), sent.response.as_str()), ("a@b.test", "250 2.0.0 queued as 1"));
        assert_eq!(sent.message_id, format!("<{id}@example.com>"));
        assert_eq!(told(&store, "email", id).await, [
            "SendEmailRequestedEvent", "EmailAttemptStartedEvent", "EmailAttemptDeferredEvent",
            "EmailAttemptStartedEvent", "EmailAttemptDeferredEvent", "EmailAttemptStartedEvent",
            "SucceededInSendingEmailEvent",
        ]);
    }

    /// N-22, NAOS-13: 550 ends it at once; the log of deliveries says so of the address, however it is capitalised.
    async fn n22_what_is_refused_has_failed(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, MailServer::start().await.unwrap());
        let engine = system(&store, &mailing(&server)).await;
        server.react(says("Test@example.com", 1, Reaction::Say("550 5.1.1 no such user")));
        for to in ["Test@example.com", "other@example.com"] {
            ask_mail(&store, &mail(to)).await;
        }
        run(&engine).await;
        at(&engine, seconds(24 * 3_600)).await;
        assert_eq!((server.asked_for("Test@example.com"), server.received().len()), (1, 1));
        let failed = all_of::<FailedToSendEmailEvent>(&store).await;
        assert_eq!(failed.len(), 1);
        assert_eq!((failed[0].to.as_str(), failed[0].reason.as_str()), ("Test@example.com", "550 5.1.1 no such user"));

        let log = DeliveryLog::new(store.clone());
        let to = |to: &str| DeliveryFilter { to: Some(to.to_owned()), ..DeliveryFilter::default() };
        let rows = log.find(&to("test@EXAMPLE.com"), None, 10).await.unwrap();
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!((row.status.as_str(), row.attempts, row.detail.as_str()), ("failed", 1, "550 5.1.1 no such user"));
        assert_eq!((row.subject.as_str(), row.tracking_id.as_deref()), ("You have a message", Some("tracked")));
        let tracked = DeliveryFilter { tracking_id: Some("tracked".into()), ..DeliveryFilter::default() };
        let page = log.find(&tracked, None, 1).await.unwrap();
        assert_eq!((page.len(), page[0].recipient.as_str()), (1, "other@example.com"));
        let rest = log.find(&tracked, Some(page[0].position), 10).await.unwrap();
        assert_eq!((rest.len(), rest[0].recipient.as_str()), (1, "Test@example.com"));
        let sent = DeliveryFilter { status: Some(DeliveryStatus::Sent), ..to("other@example.com") };
        assert_eq!(log.find(&sent, None, 10).await.unwrap().len(), 1);
        let never = DeliveryFilter { since: Some(T0.plus(seconds(1))), ..DeliveryFilter::default() };
        assert_eq!(log.find(&never, None, 10).await.unwrap(), []);
    }

    /// N-22: a connection that is lost before the mail is complete is tried again; nothing can have arrived.
    async fn n22_a_connection_that_is_lost_early_is_tried_again(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, MailServer::start().await.unwrap());
        let engine = system(&store, &holding(mailing(&server))).await;
        for reaction in [Reaction::HangUp, Reaction::Say("421 4.3.2 shutting down")] {
            server.react(says("c@b.test", 1, reaction));
            let (before, now) = (server.asked_for("c@b.test"), engine.clock().now().await.unwrap());
            let operation = SendEmailOp { operation_id: uuid::Uuid::new_v4(), ..mail("c@b.test") };
            ask_mail(&store, &operation).await;
            run(&engine).await;
            assert_eq!(server.asked_for("c@b.test") - before, 1);
            at(&engine, after_t0(now) + seconds(60)).await;
            assert_eq!(server.asked_for("c@b.test") - before, 2);
        }
        assert_eq!(server.received().len(), 2);
        assert_eq!(statuses(&engine).await, [EffectStatus::Done, EffectStatus::Done]);
    }

    /// N-22: an answer that is lost after the final dot: nobody knows. Sent again, byte for byte; or held, as is set.
    async fn n22_a_lost_answer_is_in_doubt(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, MailServer::start().await.unwrap());
        let engine = system(&store, &mailing(&server)).await;
        let once = || {
            let mut left = 1;
            move |moment: &Moment| match moment {
                Moment::Mail(_) if left > 0 => {
                    left -= 1;
                    Reaction::HangUp
                }
                _ => Reaction::Usual,
            }
        };
        server.react(once());
        ask_mail(&store, &mail("d@b.test")).await;
        run(&engine).await;
        at(&engine, seconds(60)).await;
        let received = server.received_for("d@b.test");
        assert_eq!(received.len(), 2, "the documented duplicate");
        assert_eq!(received[0], received[1]);

        let engine = system(&store, &holding(mailing(&server))).await;
        server.react(once());
        ask_mail(&store, &mail("e@b.test")).await;
        run(&engine).await;
        at(&engine, seconds(24 * 3_600)).await;
        assert_eq!(server.received_for("e@b.test").len(), 1);
        assert_eq!(statuses(&engine).await, [EffectStatus::Done, EffectStatus::Held]);
        assert_eq!(all_of::<EmailIsInDoubtEvent>(&store).await.len(), 1);
        let in_doubt = DeliveryFilter { status: Some(DeliveryStatus::InDoubt), ..DeliveryFilter::default() };
        assert_eq!(DeliveryLog::new(store.clone()).find(&in_doubt, None, 10).await.unwrap().len(), 1);
    }

    /// N-22, E-50: a refused password puts email_delivery into error, burns no mail and disturbs nobody else; once it
    /// is right everything goes out by itself.
    async fn n22_a_refused_password_stops_mails_only(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, MailServer::start().await.unwrap());
        let mut settings = mailing(&server);
        let login = notification_subscribers::delivery::Login { user: "herald".into(), password: Secret::new("canary") };
        settings.email = settings.email.map(|email| email.with_login(login).unwrap());
        let engine = system(&store, &settings).await;
        server.react(|moment| match moment {
            Moment::Login(_) => Reaction::Say("535 5.7.8 bad credentials"),
            _ => Reaction::Usual,
        });
        for to in ["a@b.test", "b@b.test"] {
            ask_mail(&store, &mail(to)).await;
        }
        run(&engine).await;
        let failed = look(&engine, "email_delivery").await;
        let subscription_engine::State::Error { failure, .. } = &failed.state else { panic!("{failed:?}") };
        let why = failure.chain.join(": ");
        assert!(why.contains("535 5.7.8 bad credentials") && !why.contains("canary"), "{why}");
        for other in ["inbox_1", "slack_delivery", "delivery_log_1"] {
            assert_eq!(status(&engine, other).await, Status::Active);
        }
        let effects = ledger(&engine).await;
        assert!(effects.iter().all(|it| it.state.status() == EffectStatus::Pending && it.failures == 0), "{effects:?}");
        server.react(|_| Reaction::Usual);
        at(&engine, seconds(3_600)).await;
        assert_eq!(server.received().len(), 2);
        assert_eq!(status(&engine, "email_delivery").await, Status::Active);
    }

    /// E-50: without a mail server a mail waits and says what to set; with one it is sent.
    async fn e50_without_a_mail_server_mails_wait(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, MailServer::start().await.unwrap());
        let engine = system(&store, &DeliverySettings::default()).await;
        ask_mail(&store, &mail("a@b.test")).await;
        run(&engine).await;
        assert_eq!(status(&engine, "email_delivery").await, Status::Error);
        let effects = ledger(&engine).await;
        assert_eq!(effects[0].why, "no mail server is configured: set HERALD_NOTIFY__EMAIL__HOST");
        let engine = system(&store, &mailing(&server)).await;
        at(&engine, seconds(3_600)).await;
        assert_eq!((server.received().len(), status(&engine, "email_delivery").await), (1, Status::Active));
    }

    /// Section 8: a mail that reminds of what was acknowledged meanwhile is not sent; of what is still pending, it is.
    async fn n13_nobody_is_reminded_of_what_is_acknowledged(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, MailServer::start().await.unwrap());
        let engine = system(&store, &mailing(&server)).await;
        let user = stream("user-user1");
        let of = |event| store.append(&user, ExpectedVersion::Any, vec![event]);
        for id in ["n1", "n2"] {
            let notified = UserWasNotified {
                user_id: "user1".into(), notification_id: id.into(), message: "hi".into(), timestamp: T0,
            };
            of(NewEvent::of(&notified).unwrap()).await.unwrap();
        }
        let acknowledged = UserHasAcknowledgedNotification { user_id: "user1".into(), notification_id: "n1".into() };
        of(NewEvent::of(&acknowledged).unwrap()).await.unwrap();
        let reminding = |to: &str, ids: &[&str]| SendEmailOp {
            reminds_of: Some(RemindsOf {
                user_id: "user1".into(),
                notification_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
            }),
            ..mail(to)
        };
        ask_mail(&store, &reminding("one@b.test", &["n1"])).await;
        ask_mail(&store, &reminding("both@b.test", &["n1", "n2"])).await;
        run(&engine).await;
        assert_eq!((server.asked_for("one@b.test"), server.received_for("both@b.test").len()), (0, 1));
        let failed = all_of::<FailedToSendEmailEvent>(&store).await;
        assert_eq!((failed.len(), failed[0].reason.as_str()), (1, "acknowledged"));
        let id = reminding("one@b.test", &[]).operation_id;
        assert_eq!(told(&store, "email", id).await, ["SendEmailRequestedEvent", "FailedToSendEmailEvent"]);
    }

    /// Section 7: an address that must not be used any more is not used, also for what was queued before.
    async fn n24_a_suppressed_address_is_not_used(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, MailServer::start().await.unwrap());
        let engine = system_with(&store, &mailing(&server), Arc::new(Bounced("gone@b.test"))).await;
        for to in ["gone@b.test", "here@b.test"] {
            ask_mail(&store, &mail(to)).await;
        }
        run(&engine).await;
        assert_eq!((server.asked_for("gone@b.test"), server.asked_for("here@b.test")), (0, 1));
        let failed = all_of::<FailedToSendEmailEvent>(&store).await;
        assert_eq!(failed[0].reason, "suppressed: it bounced");
    }

    /// N-27: nothing in a message becomes a header, and the mail says how to unsubscribe from it with one click.
    async fn n27_headers(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, MailServer::start().await.unwrap());
        let links = UnsubscribeLinks::new("https://herald.test/unsubscribe", vec![Secret::new("x".repeat(32))]).unwrap();
        let mut settings = mailing(&server);
        settings.email = settings.email.map(|email| email.with_unsubscribe(Some(links.clone())));
        let engine = system(&store, &settings).await;
        let who = Unsubscribe { user_id: "user1".into(), list: "reminders".into() };
        let text = "Grüße: Hi\r\nBcc: x@evil.test";
        let operation = SendEmailOp { subject: text.into(), text: text.into(), unsubscribe: Some(who.clone()), ..mail("a@b.test") };
        ask_mail(&store, &operation).await;
        run(&engine).await;
        let mail = server.received().remove(0);
        assert_eq!(mail.to, "a@b.test");
        let (head, _) = mail.text.split_once("\r\n\r\n").unwrap();
        // Folded lines joined.
        let head = head.replace("\r\n ", " ");
        let header = |name: &str| {
            let values: Vec<&str> = head.split("\r\n").filter_map(|line| line.strip_prefix(&format!("{name}: "))).collect();
            assert_eq!(values.len(), 1, "{name}: {head}");
            values[0].to_owned()
        };
        let names: Vec<&str> = head.split("\r\n").map(|line| line.split_once(": ").unwrap().0).collect();
        let mut unique = names.clone();
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), names.len(), "{head}");
        assert!(!head.to_lowercase().contains("\r\nbcc"), "{head}");
        assert_eq!(header("Auto-Submitted"), "auto-generated");
        assert_eq!(header("Date"), "Thu, 01 Jan 2026 00:00:00 +0000");
        assert!(header("Subject").starts_with("=?utf-8?"), "{head}");
        assert_eq!(header("List-Unsubscribe-Post"), "List-Unsubscribe=One-Click");
        let link = header("List-Unsubscribe");
        let token = link.strip_prefix("<https://herald.test/unsubscribe/").and_then(|rest| rest.strip_suffix('>')).unwrap();
        assert_eq!(links.verify(token), Ok(who));
        assert!(mail.text.is_ascii());
    }

    /// Section 8: an operation that can never be carried out has failed, and holds up neither the others nor the
    /// subscription.
    async fn n22_an_operation_that_cannot_be_has_failed(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, MailServer::start().await.unwrap());
        let engine = system(&store, &mailing(&server)).await;
        ask_mail(&store, &mail("no address")).await;
        let id = uuid::Uuid::from_u128(9);
        let broken = NewEvent::new("Acme.Notifications:SendEmailOp", Json::empty_object());
        let stream = stream(&format!("email_op-{id}"));
        store.append(&stream, ExpectedVersion::NoStream, vec![broken]).await.unwrap();
        ask_mail(&store, &mail("fine@b.test")).await;
        run(&engine).await;
        let reasons: Vec<String> =
            all_of::<FailedToSendEmailEvent>(&store).await.into_iter().map(|failed| failed.reason).collect();
        assert_eq!(reasons.len(), 2, "{reasons:?}");
        for text in ["\"no address\" is no mail address", "the operation cannot be read"] {
            assert!(reasons.iter().any(|reason| reason.contains(text)), "{text}: {reasons:?}");
        }
        assert_eq!(told(&store, "email", id).await, ["FailedToSendEmailEvent"]);
        assert_eq!((server.received().len(), status(&engine, "email_delivery").await), (1, Status::Active));
    }

    /// E-51: a mail server that takes its time over some mails holds up neither other mails nor, when it holds up all
    /// of them, Slack.
    async fn e51_a_slow_server_holds_up_nobody_else(database: TestDatabase) {
        let (store, server) = (database.store().await, MailServer::start().await.unwrap());
        let slack = testkit::WebServer::slack("xoxb").await.unwrap();
        let mut settings = mailing(&server);
        settings.slack.webhooks.insert("ops".into(), Secret::new(slack.url("/services/ops")));
        let engine = system(&store, &settings).await;
        server.react(|moment| match moment {
            Moment::Recipient(to) if to.starts_with("slow") => Reaction::FallSilent,
            _ => Reaction::Usual,
        });
        let worker = Running::start(&engine).await;
        ask_mail(&store, &mail("slow0@b.test")).await;
        server.has_seen(&Moment::Recipient("slow0@b.test".into())).await;
        ask_mail(&store, &mail("quick@b.test")).await;
        server.has_received(1).await;
        for number in 1..8 {
            let to = format!("slow{number}@b.test");
            ask_mail(&store, &mail(&to)).await;
            server.has_seen(&Moment::Recipient(to)).await;
        }
        crate::delivery_slack::ask_slack(&store, "webhook:ops", "still here").await;
        slack.has_been_asked(1).await;
        server.react(|_| Reaction::Usual);
        drop(server);
        worker.stop().await;
    }

    /// N-18: nothing that is built anew sends anything.
    async fn n18_a_rebuild_sends_nothing(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, MailServer::start().await.unwrap());
        let engine = system(&store, &mailing(&server)).await;
        for number in 0..20 {
            ask_mail(&store, &mail(&format!("u{number}@b.test"))).await;
        }
        run(&engine).await;
        assert_eq!(server.connections(), 20);
        let log = DeliveryLog::new(store.clone());
        let before = log.find(&DeliveryFilter::default(), None, 100).await.unwrap();
        assert!(before.len() == 20 && before.iter().all(|row| row.status == "sent"), "{before:?}");
        let projectors = Criteria { groups: Some(vec!["projector".into()]), ids: None };
        engine.remove(&projectors, "test").await.unwrap();
        run(&engine).await;
        at(&engine, seconds(24 * 3_600)).await;
        assert_eq!(server.connections(), 20);
        assert_eq!(log.find(&DeliveryFilter::default(), None, 100).await.unwrap(), before);
    }
}

/// This address has bounced.
struct Bounced(&'static str);

#[async_trait]
impl Suppressions for Bounced {
    async fn why_suppressed(&self, address: &str, _: &mut Tx) -> Result<Option<String>, BoxError> {
        Ok((address == self.0).then(|| "it bounced".to_owned()))
    }
}
