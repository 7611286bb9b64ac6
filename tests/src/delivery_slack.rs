//! Slack and webhooks, against a server that answers as theirs do.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use notification_subscribers::delivery::{Attempts, DeliverySettings, WebhookTarget};
use notification_subscribers::operations::{
    FailedToSendSlackMessageEvent, FailedToSendWebhookEvent, SendSlackMessageOp, SendWebhookOp,
    SlackMessageAttemptDeferredEvent, SucceededInSendingSlackMessageEvent, SucceededInSendingWebhookEvent,
};
use serde_json::json;
use sha2::Sha256;
use store::{Secret, Store};
use subscription_engine::{EffectStatus, InDoubt, Status};
use testkit::{Response, T0, WebServer, as_slack, both};
use uuid::Uuid;

use crate::delivery::{after_t0, all_of, ask, at, run, seconds, system, told};
use crate::effects::{ledger, statuses};
use crate::engine::status;

/// Slack at this server: its Web API and a webhook.
fn slack(server: &WebServer) -> DeliverySettings {
    let mut settings = DeliverySettings::default();
    settings.slack.token = Some(Secret::new("xoxb-canary"));
    settings.slack.api_url = server.url("/api");
    settings.slack.webhooks.insert("ops".into(), Secret::new(server.url("/services/T0/B0/canary")));
    settings
}

/// Appends an operation; answers with its id.
pub(crate) async fn ask_slack(store: &Store, to: &str, text: &str) -> Uuid {
    let operation_id = Uuid::new_v4();
    let operation = SendSlackMessageOp { operation_id, to: to.into(), text: text.into(), decided_at: T0 };
    ask(store, "slack_op", operation_id, &operation).await;
    operation_id
}

both! {
    /// N-20, section 7: posted by the Web API with the operation's id, its `ts` is kept; user text calls nobody.
    async fn n20_a_message_is_posted(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, WebServer::slack("xoxb-canary").await.unwrap());
        let engine = system(&store, &slack(&server)).await;
        let id = ask_slack(&store, "C024BE91L", "<!channel> a & b").await;
        ask_slack(&store, "webhook:ops", "<!here>").await;
        run(&engine).await;
        let requests = server.requests();
        assert_eq!(requests.len(), 2);
        let posted = requests.iter().find(|request| request.path == "/api/chat.postMessage").unwrap();
        assert_eq!(posted.json(), json!({
            "channel": "C024BE91L", "text": "&lt;!channel&gt; a &amp; b",
            "metadata": { "event_type": "herald_operation", "event_payload": { "operation_id": id } },
        }));
        let hook = requests.iter().find(|request| request.path.starts_with("/services/")).unwrap();
        assert_eq!(hook.json(), json!({ "text": "&lt;!here&gt;" }));
        let mut sent = all_of::<SucceededInSendingSlackMessageEvent>(&store).await;
        sent.sort_by(|one, other| one.to.cmp(&other.to));
        let sent: Vec<_> = sent.iter().map(|it| (it.to.as_str(), it.response.as_str())).collect();
        assert_eq!(sent, [("C024BE91L", "1503435956.000247"), ("webhook:ops", "ok")]);
    }

    /// N-21: 404 channel_not_found is for good: one attempt, a failure.
    async fn n21_a_refused_message_has_failed(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, WebServer::slack("xoxb-canary").await.unwrap());
        let engine = system(&store, &slack(&server)).await;
        server.answer(|_| Response::status(404, "channel_not_found"));
        let id = ask_slack(&store, "webhook:ops", "hi").await;
        let unknown = ask_slack(&store, "webhook:nobody", "hi").await;
        let impossible = ask_slack(&store, "C1\nC2", "hi").await;
        let silent = ask_slack(&store, "C1", " ").await;
        run(&engine).await;
        at(&engine, seconds(24 * 3_600)).await;
        assert_eq!(server.requests().len(), 1);
        let failed = all_of::<FailedToSendSlackMessageEvent>(&store).await;
        let reason = |id| failed.iter().find(|it| it.operation_id == id).unwrap().reason.as_str();
        assert_eq!(reason(id), "404 channel_not_found");
        assert_eq!(reason(unknown), "no Slack webhook is called \"nobody\"; there are: ops");
        assert!(reason(impossible).contains("no control characters"), "{failed:?}");
        assert_eq!(reason(silent), "there is no text");
        assert_eq!(told(&store, "slack", id).await, [
            "SendSlackMessageRequestedEvent", "SlackMessageAttemptStartedEvent", "FailedToSendSlackMessageEvent",
        ]);
        assert_eq!(status(&engine, "slack_delivery").await, Status::Active);
    }

    /// Section 7, E-51: 429 is waited out to the second, also by the process that comes after; others go on.
    async fn e51_retry_after_is_honoured_across_a_restart(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, WebServer::slack("xoxb-canary").await.unwrap());
        let engine = system(&store, &slack(&server)).await;
        let mut left = 1;
        server.answer(move |request| {
            if request.json()["channel"] == "C1" && left > 0 {
                left -= 1;
                return Response::Status(429, Some(7), String::new());
            }
            as_slack(request, "xoxb-canary")
        });
        ask_slack(&store, "C1", "limited").await;
        ask_slack(&store, "C1", "behind it").await;
        ask_slack(&store, "C2", "elsewhere").await;
        run(&engine).await;
        let to = |to: &str| server.requests().iter().filter(|request| request.json()["channel"] == to).count();
        assert_eq!((to("C1"), to("C2")), (1, 1));
        let deferred = all_of::<SlackMessageAttemptDeferredEvent>(&store).await;
        assert_eq!((deferred.len(), after_t0(deferred[0].retry_at)), (1, seconds(7)));
        drop(engine);

        let engine = system(&database.store_with_manual_clock().await, &slack(&server)).await;
        at(&engine, Duration::from_millis(6_999)).await;
        assert_eq!(to("C1"), 1);
        at(&engine, seconds(7)).await;
        assert_eq!(to("C1"), 2);
        at(&engine, seconds(8)).await;
        assert_eq!(to("C1"), 3);
        assert!(ledger(&engine).await.iter().all(|effect| effect.failures == 0), "it does not count as a failure");
    }

    /// Section 7: about one message a second for one conversation, in their order; others are not slowed down.
    async fn e51_one_message_a_second_for_a_conversation(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, WebServer::slack("xoxb-canary").await.unwrap());
        let engine = system(&store, &slack(&server)).await;
        for text in ["0", "1", "2"] {
            ask_slack(&store, "C1", text).await;
        }
        ask_slack(&store, "C2", "other").await;
        let texts = || -> Vec<String> {
            let requests = server.requests().into_iter().filter(|request| request.json()["channel"] == "C1");
            requests.map(|request| request.json()["text"].as_str().unwrap().to_owned()).collect()
        };
        run(&engine).await;
        assert_eq!((texts(), server.requests().len()), (vec!["0".to_owned()], 2));
        at(&engine, Duration::from_millis(999)).await;
        assert_eq!(texts().len(), 1);
        at(&engine, seconds(2)).await;
        assert_eq!(texts(), ["0", "1", "2"]);
    }

    /// Section 6: what may have been posted is posted again, or held where that is set.
    async fn n22_an_ambiguous_answer_of_slack(database: TestDatabase) {
        let (store, server) = (database.store_with_manual_clock().await, WebServer::slack("xoxb-canary").await.unwrap());
        let fails = || {
            let mut left = 1;
            move |request: &testkit::Request| {
                if left > 0 {
                    left -= 1;
                    return Response::HangUp;
                }
                as_slack(request, "xoxb-canary")
            }
        };
        let engine = system(&store, &slack(&server)).await;
        server.answer(fails());
        ask_slack(&store, "C1", "hi").await;
        run(&engine).await;
        at(&engine, seconds(60)).await;
        assert_eq!((server.requests().len(), statuses(&engine).await), (2, vec![EffectStatus::Done]));

        let mut settings = slack(&server);
        settings.slack.attempts = Attempts { in_doubt: InDoubt::Hold, ..Attempts::default() };
        let engine = system(&store, &settings).await;
        server.answer(fails());
        ask_slack(&store, "C1", "hi").await;
        run(&engine).await;
        at(&engine, seconds(24 * 3_600)).await;
        assert_eq!(server.requests().len(), 3);
        assert_eq!(statuses(&engine).await, [EffectStatus::Done, EffectStatus::Held]);
        let why = &ledger(&engine).await[1].why;
        assert!(!why.contains("127.0.0.1") && !why.contains("canary"), "an address can be a secret: {why}");
    }

    /// A webhook is signed as Standard Webhooks says: the same id and body each time, the time of the attempt.
    async fn a_webhook_is_signed_and_repeated(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let server = WebServer::start(|_| Response::status(500, "")).await.unwrap();
        let mut settings = DeliverySettings::default();
        let target = WebhookTarget::new(Secret::new(server.url("/hook")), &Secret::new("a key of some length"));
        settings.webhook.targets.insert("crm".into(), target.unwrap());
        let engine = system(&store, &settings).await;
        let operation_id = Uuid::new_v4();
        let data = json!({ "b": 1, "a": "ü" });
        let operation = SendWebhookOp { operation_id, to: "crm".into(), event_type: "x.happened".into(), data, decided_at: T0 };
        ask(&store, "webhook_op", operation_id, &operation).await;
        let nobody = Uuid::new_v4();
        ask(&store, "webhook_op", nobody, &SendWebhookOp { operation_id: nobody, to: "nobody".into(), ..operation }).await;
        run(&engine).await;
        server.answer(|_| Response::status(204, ""));
        at(&engine, seconds(60)).await;
        let requests = server.requests();
        assert_eq!(requests.len(), 2);
        for (request, passed) in requests.iter().zip([0, 60]) {
            let at = (T0.as_micros() / 1_000_000 + passed).to_string();
            assert_eq!(request.body, r#"{"type":"x.happened","timestamp":"2026-01-01T00:00:00.000000Z","data":{"b":1,"a":"ü"}}"#);
            assert_eq!((request.header("webhook-id"), request.header("webhook-timestamp")), (&*operation_id.to_string(), &*at));
            let mut mac = Hmac::<Sha256>::new_from_slice(b"a key of some length").unwrap();
            mac.update(format!("{operation_id}.{at}.{}", request.body).as_bytes());
            let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
            assert_eq!(request.header("webhook-signature"), expected);
        }
        assert_eq!(all_of::<SucceededInSendingWebhookEvent>(&store).await.len(), 1);
        let failed = all_of::<FailedToSendWebhookEvent>(&store).await;
        assert_eq!((failed.len(), failed[0].operation_id), (1, nobody));
    }
}
