//! Delivery as an operator has it: settings, tests, the log of deliveries, a daemon that is killed; and no secret in
//! anything that is said.

use std::collections::BTreeMap;

use testkit::{MailServer, Moment, Reaction, Response, WebServer, both};

use crate::delivery::{ask_mail, mail};
use crate::delivery_slack::ask_slack;
use crate::program::{Daemon, Said, command, herald, herald_with};

/// What a daemon and its operators are told of the outside.
fn settings(server: &MailServer, slack: &WebServer) -> BTreeMap<&'static str, String> {
    BTreeMap::from([
        ("HERALD_NOTIFY__EMAIL__HOST", "127.0.0.1".to_owned()),
        ("HERALD_NOTIFY__EMAIL__PORT", server.port().to_string()),
        ("HERALD_NOTIFY__EMAIL__TLS", "none".to_owned()),
        ("HERALD_NOTIFY__EMAIL__FROM", "Herald <herald@example.com>".to_owned()),
        ("HERALD_NOTIFY__EMAIL__USER", "herald".to_owned()),
        ("HERALD_NOTIFY__EMAIL__PASSWORD", "canary-password".to_owned()),
        ("HERALD_NOTIFY__SLACK__TOKEN", "canary-token".to_owned()),
        ("HERALD_NOTIFY__SLACK__API_URL", slack.url("/api")),
        ("HERALD_NOTIFY__SLACK__WEBHOOKS__OPS", slack.url("/services/canary-webhook")),
        ("HERALD_NOTIFY__WEBHOOK__TARGETS__CRM__URL", slack.url("/canary-url")),
        ("HERALD_NOTIFY__WEBHOOK__TARGETS__CRM__KEY", "canary-key-of-crm".to_owned()),
    ])
}

/// Them, as the environment of a process.
fn pairs<'a>(settings: &'a BTreeMap<&'static str, String>) -> Vec<(&'a str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

both! {
    /// NAOS-13, C-06: "what emails were sent to test@example.com?"
    async fn naos_13_what_was_sent_to_somebody(database: TestDatabase) {
        let server = MailServer::start().await.unwrap();
        let slack = WebServer::slack("canary-token").await.unwrap();
        let settings = settings(&server, &slack);
        let env = pairs(&settings);
        herald(&database, &["store", "setup"]).ok();
        assert_eq!(herald(&database, &["deliveries", "--no-header"]).ok(), "");
        let store = database.store().await;
        server.react(|moment| match moment {
            Moment::Recipient(to) if to == "gone@example.com" => Reaction::Say("550 5.1.1 no such user"),
            _ => Reaction::Usual,
        });
        for to in ["test@example.com", "gone@example.com"] {
            ask_mail(&store, &mail(to)).await;
        }
        ask_slack(&store, "webhook:ops", "hi").await;
        let worked = herald_with(&database, &env, &["worker", "--until-caught-up"]);
        assert_eq!(worked.code, Some(0), "{worked:?}");

        let all = herald(&database, &["deliveries", "-o", "json"]).json();
        assert_eq!(all["schema"], "herald.deliveries.list/1");
        assert_eq!(all["data"].as_array().unwrap().len(), 3);
        let to = herald(&database, &["deliveries", "--to", "TEST@example.com", "-o", "json"]).json();
        let row = &to["data"][0];
        assert_eq!((&row["status"], &row["kind"], &row["attempts"]), (&"sent".into(), &"email".into(), &"1".into()));
        assert_eq!((&row["tracking"], &row["detail"]), (&"tracked".into(), &"250 2.0.0 queued as 1".into()));
        assert_eq!(to["data"].as_array().unwrap().len(), 1);
        let failed = herald(&database, &["deliveries", "--status", "failed", "-o", "plain", "--no-header"]).ok();
        assert!(failed.contains("gone@example.com") && failed.contains("550 5.1.1") && failed.lines().count() == 1, "{failed}");
        let page = herald(&database, &["deliveries", "--tracking", "tracked", "--limit", "2", "-o", "json"]).json();
        let rest = herald(&database, &["deliveries", "--after", page["next"].as_str().unwrap(), "-o", "jsonl"]).ok();
        assert_eq!(rest.lines().count(), 1);
        assert_eq!(herald(&database, &["deliveries", "--since", "2100-01-01T00:00:00Z", "--no-header"]).ok(), "");
        herald(&database, &["deliveries", "--status", "lost"]).fails(2);

        let replay = herald_with(&database, &env, &["projection", "replay", "email_delivery"]).fails(1);
        assert_eq!(server.received().len(), 1, "{replay:?}");
        for projection in ["inbox", "deliveries"] {
            herald_with(&database, &env, &["projection", "replay", projection]).ok();
        }
        herald_with(&database, &env, &["worker", "--until-caught-up"]).ok();
        assert_eq!((server.received().len(), slack.requests().len()), (1, 1), "a replay sends nothing");
        assert_eq!(herald(&database, &["deliveries", "-o", "json"]).json(), all);
    }

    /// `herald notify test`: what came of it, and whose fault it is.
    async fn c10_a_test_says_what_came_of_it(database: TestDatabase) {
        let server = MailServer::start().await.unwrap();
        let slack = WebServer::slack("canary-token").await.unwrap();
        let mut settings = settings(&server, &slack);
        herald(&database, &["store", "setup"]).ok();
        let said = herald(&database, &["notify", "test", "email", "test@example.com"]).fails(78);
        assert!(said.stderr.contains("no mail server is configured: set HERALD_NOTIFY__EMAIL__HOST"), "{said:?}");
        herald(&database, &["notify", "test", "slack", "C1"]).fails(78);
        herald(&database, &["notify", "test", "webhook", "crm"]).fails(78);
        let env = pairs(&settings);
        let sent = herald_with(&database, &env, &["notify", "test", "email", "test@example.com"]).ok();
        assert_eq!(sent, "Sent a test to test@example.com: 250 2.0.0 queued as 1\n");
        assert!(server.received()[0].text.contains("Subject: A test of Herald\r\n"));
        let sent = herald_with(&database, &env, &["notify:test", "slack", "webhook:ops", "-o", "json"]).json();
        assert_eq!((&sent["schema"], &sent["data"]["answer"]), (&"herald.notify.test/1".into(), &"ok".into()));
        let sent = herald_with(&database, &env, &["notify", "test", "slack", "C1"]).ok();
        assert_eq!(sent, "Sent a test to C1: 1503435956.000247\n");
        herald_with(&database, &env, &["notify", "test", "slack", "webhook:nobody"]).fails(1);
        herald_with(&database, &env, &["notify", "test", "email", "nobody"]).fails(1);
        server.react(|_| Reaction::Say("550 5.7.1 not for you"));
        herald_with(&database, &env, &["notify", "test", "email", "test@example.com"]).fails(78);
        drop(server);
        let gone = herald_with(&database, &env, &["notify", "test", "email", "test@example.com"]).fails(6);
        assert!(gone.stderr.contains("127.0.0.1") && !gone.stderr.contains("canary"), "{gone:?}");
        slack.answer(|_| Response::status(410, "gone"));
        herald_with(&database, &env, &["notify", "test", "webhook", "crm"]).fails(1);

        settings.insert("HERALD_NOTIFY__EMAIL__HOTS", "typo".to_owned());
        settings.insert("HERALD_NOTIFY__EMAIL__TLS", "yes".to_owned());
        let wrong = herald_with(&database, &pairs(&settings), &["status"]).fails(78);
        for text in ["EMAIL__HOTS is no setting: is HERALD_NOTIFY__EMAIL__HOST meant?", "EMAIL__TLS cannot be \"yes\""] {
            assert!(wrong.stderr.contains(text), "{wrong:?}");
        }
        assert!(!wrong.stderr.contains("canary"), "{wrong:?}");
        let list = herald_with(&database, &pairs(&settings), &["notify", "settings"]).ok();
        assert!(list.contains("HERALD_NOTIFY__EMAIL__UNSUBSCRIBE_URL"), "{list}");
    }

    /// O-03: whatever goes wrong, at the highest level of detail, no secret is in what the daemon and the commands say.
    async fn o03_no_secret_is_ever_said(database: TestDatabase) {
        let server = MailServer::start().await.unwrap();
        let slack = WebServer::slack("another token").await.unwrap();
        let mut settings = settings(&server, &slack);
        settings.insert("HERALD_LOG", "trace".to_owned());
        herald(&database, &["store", "setup"]).ok();
        let store = database.store().await;
        server.react(|moment| match moment {
            Moment::Login(_) => Reaction::Say("535 5.7.8 bad credentials"),
            _ => Reaction::Usual,
        });
        ask_mail(&store, &mail("test@example.com")).await;
        ask_slack(&store, "C1", "refused by its token").await;
        let lost = WebServer::start(|_| Response::HangUp).await.unwrap();
        settings.insert("HERALD_NOTIFY__SLACK__WEBHOOKS__OPS", lost.url("/services/canary-webhook"));
        settings.insert("HERALD_NOTIFY__SLACK__WEBHOOKS__GONE", "http://127.0.0.1:1/canary-webhook".to_owned());
        for to in ["webhook:ops", "webhook:gone"] {
            ask_slack(&store, to, "lost").await;
        }
        let mut said = vec![herald_with(&database, &pairs(&settings), &["worker", "--once"])];
        assert!(said[0].stderr.contains("535 5.7.8"), "the log says what is wrong: {:?}", said[0]);
        assert_eq!(lost.requests().len(), 1);
        for arguments in [
            &["effects", "list", "-o", "json"][..],
            &["sub", "show", "email_delivery"],
            &["sub", "list", "-o", "json"],
            &["deliveries", "-o", "json"],
            &["events", "list", "-o", "json"],
            &["notify", "test", "slack", "webhook:gone"],
            &["notify", "test", "email", "test@example.com"],
            &["status"],
            &["doctor"],
        ] {
            said.push(herald_with(&database, &pairs(&settings), arguments));
        }
        for Said { stdout, stderr, .. } in said {
            let all = format!("{stdout}{stderr}");
            // The password as SMTP sends it, too.
            for secret in ["canary", "AGhlcmFsZABjYW5hcnktcGFzc3dvcmQ"] {
                assert!(!all.contains(secret), "{secret}: {all}");
            }
        }
    }

    /// Section 6: kill -9 between sending and writing down: at most the documented duplicate, byte for byte the same.
    async fn n22_kill_9_between_sending_and_writing_down(database: TestDatabase) {
        let server = MailServer::start().await.unwrap();
        let slack = WebServer::slack("canary-token").await.unwrap();
        let settings = settings(&server, &slack);
        let env = pairs(&settings);
        let store = database.store_with_manual_clock().await;
        herald(&database, &["--test-mode", "store", "setup"]).ok();
        server.react(|moment| match moment {
            Moment::Mail(_) => Reaction::FallSilent,
            _ => Reaction::Usual,
        });
        ask_mail(&store, &mail("test@example.com")).await;
        let daemon = Daemon::start_with(&database, &env, &["--test-mode"]);
        server.has_received(1).await;
        daemon.kill();
        server.react(|_| Reaction::Usual);
        // The claim: twice what an attempt may take. Nobody else touches the mail before.
        herald_with(&database, &env, &["--test-mode", "clock", "advance", "22m"]).ok();
        assert_eq!(server.received().len(), 1);
        herald_with(&database, &env, &["--test-mode", "clock", "advance", "24h"]).ok();
        let received = server.received();
        assert_eq!(received.len(), 2, "the documented duplicate, and no more");
        assert_eq!(received[0], received[1]);
        let row = herald(&database, &["--test-mode", "deliveries", "-o", "json"]).json()["data"][0].clone();
        assert_eq!((&row["status"], &row["attempts"]), (&"sent".into(), &"2".into()), "{row}");
    }
}

/// A test that needs nothing of a database but that it is there.
#[test]
fn c09_the_commands_have_examples() {
    for arguments in
        [&["deliveries", "--help"][..], &["notify", "test", "--help"], &["notify", "test", "email", "--help"]]
    {
        let help: Said = command("sqlite:none", arguments).output().unwrap().into();
        assert!(help.ok().contains("Example"), "{arguments:?}");
    }
}
