//! The acceptance scenarios N-07 to N-10 and what belongs to them, through the built program.

use testkit::{TestDatabase, both};

use crate::program::{Daemon, Said, command, herald, until};

/// A command on a store in test mode.
pub(crate) fn on(database: &TestDatabase, arguments: &[&str]) -> Said {
    command(database.url(), ["--test-mode"].iter().chain(arguments)).output().unwrap().into()
}

/// A store whose clock stands at 2026-01-01T00:00:00Z.
fn set_up(database: &TestDatabase) {
    herald(database, &["store", "setup", "--test-clock", "2026-01-01T00:00:00Z"]).ok();
}

/// Everything has caught up.
fn run(database: &TestDatabase) {
    on(database, &["worker", "--until-caught-up"]).ok();
}

/// The id in `Sent notification <id> to channel channel1`.
#[track_caller]
fn notification_in(sent: &str) -> String {
    let id = sent.strip_prefix("Sent notification ").and_then(|rest| rest.split(' ').next()).unwrap();
    id.parse::<uuid::Uuid>().unwrap();
    id.to_owned()
}

/// How many events the log has.
fn events(database: &TestDatabase) -> usize {
    let listed = on(database, &["events", "list", "-o", "plain", "--no-header", "--limit", "1000"]).ok();
    listed.lines().count()
}

/// The events of a stream as JSON, oldest first.
fn stream(database: &TestDatabase, name: &str) -> Vec<serde_json::Value> {
    let page = on(database, &["events", "list", "--stream", name, "-o", "json"]).json();
    page["data"].as_array().unwrap().clone()
}

both! {
    async fn n07_channel_walk_through(database: TestDatabase) {
        set_up(&database);
        let added = on(&database, &["channel:add", "channel1", "First channel"]).ok();
        assert_eq!(added, "Channel \"First channel\" was created with id \"channel1\"\n");
        let first = on(&database, &["channel:notify", "channel1", "First message to channel1"]).ok();
        assert_eq!(first, format!("Sent notification {} to channel channel1\n", notification_in(&first)));
        on(&database, &["clock", "advance", "10s"]).ok();
        let subscribed = on(&database, &["channel:subscribe", "channel1", "user1"]).ok();
        assert_eq!(subscribed, "Subscribed user with id \"user1\" to channel channel1\n");
        let second = on(&database, &["channel:notify", "channel1", "Second message to channel1"]).ok();
        run(&database);
        let id = notification_in(&second);
        assert_eq!(
            on(&database, &["user:inbox", "user1"]).ok(),
            format!("1 pending message(s) for user user1:\n* Second message to channel1 (id: {id})\n")
        );
        on(&database, &["user", "acknowledge", "user1", &id]).ok();
    }

    async fn n08_channel_errors(database: TestDatabase) {
        set_up(&database);
        on(&database, &["channel", "add", "channel1", "First channel"]).ok();
        let before = events(&database);
        let refused = |arguments: &[&str], text: &str| {
            let said = on(&database, arguments).fails(1);
            assert_eq!(said.stdout, format!("{text}\n"));
            let mut as_json = arguments.to_vec();
            as_json.extend(["-o", "json"]);
            let said = on(&database, &as_json).fails(1);
            assert!(said.stdout.is_empty() && said.stderr.starts_with("{\"error\""), "{said:?}");
        };
        refused(&["channel", "add", "channel1", "Again"], "A channel with id \"channel1\" already exists");
        let none = "A channel with id \"ghost\" does not exist";
        refused(&["channel", "subscribe", "ghost", "user1"], none);
        refused(&["channel", "unsubscribe", "ghost", "user1"], none);
        refused(&["channel", "notify", "ghost", "hi"], none);
        refused(&["channel", "archive", "ghost"], none);
        refused(&["channel", "show", "ghost"], none);
        let usage = |arguments: &[&str]| {
            assert!(on(&database, arguments).fails(2).stdout.is_empty());
        };
        usage(&["channel", "add", "", "No id"]);
        usage(&["channel", "add", "a\nb", "Broken"]);
        usage(&["channel", "add", "channel2", "  "]);
        usage(&["channel", "subscribe", "channel1", "$user"]);
        usage(&["channel", "notify", "channel1", " "]);
        usage(&["channel", "notify", "channel1", &"x".repeat(5_000)]);
        usage(&["channel", "notify", "channel1", "hi", "--correlation-id", ""]);
        usage(&["channel", "notify", "channel1", "hi", "--idempotency-key", &"k".repeat(256)]);
        assert_eq!(events(&database), before);
        on(&database, &["channel", "notify", "channel1", &"x".repeat(4_096)]).ok();
    }

    async fn n09_correlation(database: TestDatabase) {
        set_up(&database);
        on(&database, &["channel", "add", "channel1", "First channel"]).ok();
        for user in ["a", "b"] {
            on(&database, &["channel", "subscribe", "channel1", user]).ok();
        }
        let sent = on(&database, &["channel", "notify", "channel1", "hi", "--correlation-id", "C"]).ok();
        run(&database);
        let events = stream(&database, "$correlation-C");
        let types: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
        let user = "Acme.Notifications:UserWasNotified";
        assert_eq!(types, ["Acme.Notifications:ChannelWasNotified", user, user]);
        assert!(events[0]["causation_id"].is_null());
        for (event, name) in events[1..].iter().zip(["a", "b"]) {
            assert_eq!((&event["stream"], &event["payload"]["userId"]), (&format!("user-{name}").into(), &name.into()));
            assert_eq!(event["causation_id"], events[0]["id"]);
            assert_eq!(event["correlation_id"], "C");
            for field in ["notificationId", "message", "timestamp"] {
                assert_eq!(event["payload"][field], events[0]["payload"][field]);
            }
        }
        assert_eq!(events[0]["payload"]["notificationId"], notification_in(&sent));

        // NEOS-66: without the option there is one of its own.
        on(&database, &["clock", "advance", "10s"]).ok();
        on(&database, &["channel", "notify", "channel1", "again"]).ok();
        run(&database);
        let last = stream(&database, "user-a").pop().unwrap();
        last["correlation_id"].as_str().unwrap().parse::<uuid::Uuid>().unwrap();
        // NEOS-68: what reached a user directly has no cause.
        on(&database, &["user", "notify", "a", "direct"]).ok();
        run(&database);
        assert!(stream(&database, "user-a").pop().unwrap()["causation_id"].is_null());
        let history = on(&database, &["user", "history", "a", "-o", "plain", "--no-header"]).ok();
        let by: Vec<&str> = history.lines().map(|line| line.split('\t').nth(3).unwrap()).collect();
        assert_eq!(by, ["channel", "channel", "direct"]);
    }

    async fn n10_flood_limit(database: TestDatabase) {
        set_up(&database);
        for channel in ["channel1", "channel2"] {
            on(&database, &["channel", "add", channel, "A channel"]).ok();
        }
        let notify = |channel: &str, at: &str| on(&database, &["channel", "notify", channel, "hi", "--at", at]);
        notify("channel1", "2026-01-01T00:00:00Z").ok();
        let before = events(&database);
        let text = "You must wait 10 seconds before a new notification can be sent to this channel\n";
        let said = notify("channel1", "2026-01-01T00:00:09.999Z").fails(1);
        assert_eq!(said.stdout, text);
        assert!(said.stderr.contains("try again in 1 s"), "{said:?}");
        // The clock steps back.
        assert_eq!(notify("channel1", "2025-12-31T00:00:00Z").fails(1).stdout, text);
        assert_eq!(events(&database), before);
        notify("channel2", "2026-01-01T00:00:09.999Z").ok();
        notify("channel1", "2026-01-01T00:00:10.000Z").ok();
        // Time is set by hand in test mode only; the log's own clock counts otherwise.
        assert_eq!(on(&database, &["channel", "notify", "channel1", "hi"]).fails(1).stdout, text);
    }

    /// NEOS-07, NEOS-74: whoever asks at the same time, one is first and the others are refused.
    async fn neos_07_flood_from_many_processes(database: TestDatabase) {
        herald(&database, &["channel", "add", "channel1", "First channel"]).ok();
        let ask = || command(database.url(), ["channel", "notify", "channel1", "flood"]);
        let asked: Vec<_> = (0..12)
            .map(|_| ask().stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap())
            .collect();
        let said: Vec<Said> = asked.into_iter().map(|asked| asked.wait_with_output().unwrap().into()).collect();
        assert_eq!(said.iter().filter(|said| said.code == Some(0)).count(), 1, "{said:?}");
        assert!(said.iter().all(|said| matches!(said.code, Some(0 | 1))), "{said:?}");
        let listed = herald(&database, &["events", "list", "-o", "plain", "--no-header"]).ok();
        assert_eq!(listed.lines().count(), 2);
    }

    /// NEOS-73 and the additions: leaving and archiving, each as often as one likes.
    async fn neos_73_unsubscribe_and_archive(database: TestDatabase) {
        set_up(&database);
        on(&database, &["channel", "add", "channel1", "First channel"]).ok();
        for user in ["user1", "user1", "a,b-c%d ü"] {
            on(&database, &["channel", "subscribe", "channel1", user]).ok();
        }
        // A double subscription is a success and no event.
        assert_eq!(events(&database), 3);
        for _ in 0..2 {
            let left = on(&database, &["channel", "unsubscribe", "channel1", "user1"]).ok();
            assert_eq!(left, "Unsubscribed user with id \"user1\" from channel channel1\n");
        }
        on(&database, &["channel", "notify", "channel1", "one"]).ok();
        on(&database, &["channel", "subscribe", "channel1", "user1"]).ok();
        run(&database);
        assert!(on(&database, &["user", "inbox", "user1"]).ok().starts_with("0 pending"));
        assert!(on(&database, &["user", "inbox", "a,b-c%d ü"]).ok().contains("* one (id: "));
        let members = |more: &[&str]| {
            let mut arguments = vec!["channel", "members", "channel1", "-o", "json"];
            arguments.extend(more);
            let page = on(&database, &arguments).json();
            let member = |member: &serde_json::Value| {
                (member["user"].as_str().unwrap().to_owned(), !member["until"].is_null())
            };
            page["data"].as_array().unwrap().iter().map(member).collect::<Vec<_>>()
        };
        let (user1, odd) = ("user1".to_owned(), "a,b-c%d ü".to_owned());
        assert_eq!(members(&[]), [(odd.clone(), false), (user1.clone(), false)]);
        assert_eq!(members(&["--former"]), [(user1.clone(), true), (odd, false), (user1, false)]);
        assert_eq!(members(&["--limit", "1"]).len(), 1);

        for _ in 0..2 {
            on(&database, &["channel", "archive", "channel1"]).ok();
        }
        on(&database, &["clock", "advance", "1h"]).ok();
        let before = events(&database);
        for arguments in [&["channel", "notify", "channel1", "two"], &["channel", "subscribe", "channel1", "x"]] {
            let said = on(&database, arguments).fails(1);
            assert_eq!(said.stdout, "The channel with id \"channel1\" is archived\n");
        }
        assert_eq!(events(&database), before);
        run(&database);
        let list = on(&database, &["channel", "list", "-o", "json"]).json();
        assert_eq!((&list["data"][0]["channel"], &list["data"][0]["members"]), (&"channel1".into(), &2.into()));
        assert!(!list["data"][0]["archived_at"].is_null());
        let shown = on(&database, &["channel", "show", "channel1", "-o", "json"]).json();
        assert_eq!((&shown["data"]["archived"], &shown["data"]["members"]), (&true.into(), &2.into()));
        // A replay builds the same lists.
        let replayed = on(&database, &["projection", "replay", "channel-members"]).ok();
        assert!(replayed.ends_with("Replayed 6 event(s).\n"), "{replayed}");
        assert_eq!(on(&database, &["channel", "list", "-o", "json"]).json(), list);
    }

    /// Section 8: with a key, a request is sent once; the key is good for nothing else.
    async fn n25_idempotency_keys(database: TestDatabase) {
        set_up(&database);
        on(&database, &["channel", "add", "channel1", "First channel"]).ok();
        let notify = ["channel", "notify", "channel1", "hi", "--idempotency-key", "k1"];
        let first = on(&database, &notify).ok();
        let before = events(&database);
        // Within the ten seconds and after them: what was done is done.
        for _ in 0..2 {
            let again = on(&database, &notify);
            assert!(again.stderr.contains("Sent before"), "{again:?}");
            assert_eq!(again.ok(), first);
            on(&database, &["clock", "advance", "10s"]).ok();
        }
        for other in [
            ["channel", "notify", "channel1", "other", "--idempotency-key", "k1"],
            ["channel", "notify", "ghost", "hi", "--idempotency-key", "k1"],
            ["user", "notify", "user1", "hi", "--idempotency-key", "k1"],
        ] {
            let said = on(&database, &other).fails(5);
            assert!(said.stderr.contains("idempotency key was used for another request"), "{said:?}");
        }
        let user = ["user", "notify", "user1", "hi", "--idempotency-key", "k2"];
        let first = on(&database, &user).ok();
        assert_eq!(on(&database, &user).ok(), first);
        assert_eq!(events(&database), before + 1);
    }

    async fn n25_the_same_key_at_the_same_time(database: TestDatabase) {
        herald(&database, &["channel", "add", "channel1", "First channel"]).ok();
        for words in [["channel", "notify", "channel1"], ["user", "notify", "user1"]] {
            let asked: Vec<_> = (0..10)
                .map(|_| {
                    let mut ask = command(database.url(), words);
                    ask.args(["hi", "--idempotency-key", words[0]]);
                    ask.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
                })
                .collect();
            let said: Vec<String> =
                asked.into_iter().map(|asked| Said::from(asked.wait_with_output().unwrap()).ok()).collect();
            assert!(said.iter().all(|one| *one == said[0]), "{said:?}");
        }
        let listed = herald(&database, &["events", "list", "-o", "plain", "--no-header"]).ok();
        assert_eq!(listed.lines().count(), 3);
    }

    /// NEOS-02: did user x see notification y before instant i?
    async fn neos_02_what_had_been_seen_before(database: TestDatabase) {
        set_up(&database);
        let sent = on(&database, &["user", "notify", "user1", "fire drill at noon"]).ok();
        let id = notification_in(&sent);
        on(&database, &["clock", "set", "2026-01-01T00:30:00Z"]).ok();
        on(&database, &["user", "acknowledge", "user1", &id]).ok();
        let said = on(&database, &["user", "history", "user1"]);
        assert!(said.stderr.contains("behind"), "{said:?}");
        run(&database);
        let one = |at: &str| {
            let said = on(&database, &["user", "history", "user1", "--notification", &id, "--at", at]).ok();
            let asked = ["user", "history", "user1", "--notification", &id, "--before", at, "-o", "json"];
            (said, on(&database, &asked).json()["data"].clone())
        };
        let (said, data) = one("2026-01-01T00:30:00Z");
        assert_eq!(
            said,
            "No: user user1 was notified at 2026-01-01T00:00:00Z (event 1) and had not acknowledged it before \
             2026-01-01T00:30:00Z.\n"
        );
        assert_eq!(data["seen"], false);
        let (said, data) = one("2026-01-01T00:30:00.000001Z");
        assert_eq!(
            said,
            "Yes: user user1 was notified at 2026-01-01T00:00:00Z (event 1) and acknowledged it at \
             2026-01-01T00:30:00Z (event 3), before 2026-01-01T00:30:00.000001Z.\n"
        );
        assert_eq!((&data["seen"], &data["acknowledged_position"]), (&true.into(), &"3".into()));
        let (said, data) = one("2026-01-01T00:00:00Z");
        assert!(said.starts_with("No: user user1 had not been notified before 2026-01-01T00:00:00Z"), "{said}");
        assert!(data.is_null());
        on(&database, &["user", "history", "user1", "--notification", "other"]).fails(3);
        let all = on(&database, &["user", "history", "user1", "--at", "2026-01-01T00:30:00Z", "-o", "json"]).json();
        assert_eq!((&all["data"][0]["seen"], &all["data"][0]["message"]), (&false.into(), &"fire drill at noon".into()));
        let none = on(&database, &["user", "history", "user1", "--at", "2025-01-01T00:00:00Z", "-o", "json"]).json();
        assert_eq!(none["data"], serde_json::json!([]));
    }

    /// N-18, the part of the projections: all of them are built anew, and what takes actions is not.
    async fn n18_replayall_leaves_processors_alone(database: TestDatabase) {
        set_up(&database);
        on(&database, &["channel", "add", "channel1", "First channel"]).ok();
        on(&database, &["channel", "subscribe", "channel1", "user1"]).ok();
        on(&database, &["channel", "notify", "channel1", "hi"]).ok();
        run(&database);
        let before = (events(&database), on(&database, &["user", "inbox", "user1"]).ok());
        let said = on(&database, &["projection:replayall"]).ok();
        for line in [
            "Replaying events for projection \"acme.notifications:archive\" ...",
            "Replaying events for projection \"acme.notifications:channel-members\" ...",
            "Replaying events for projection \"acme.notifications:inbox\" ...",
            "Replayed 2 event(s).",
        ] {
            assert!(said.lines().any(|said| said == line), "{line:?} is missing in {said}");
        }
        assert!(said.lines().last().unwrap().ends_with(" event(s) for 4 projection(s)."), "{said}");
        run(&database);
        assert_eq!((events(&database), on(&database, &["user", "inbox", "user1"]).ok()), before);
        let refused = on(&database, &["projection", "replay", "channel_fanout"]).fails(1);
        assert!(refused.stdout.contains("cannot be replayed"), "{refused:?}");
    }

    /// The daemon is killed where it stands, again and again, while a large channel is notified: everybody gets each
    /// notification once, and in the meantime a direct one arrives.
    async fn neos_57_the_daemon_dies_in_the_middle(database: TestDatabase) {
        herald(&database, &["channel", "add", "channel1", "First channel"]).ok();
        let store = database.open().await;
        let users = 6_000;
        subscribe(&store, "channel-channel1", users).await;
        herald(&database, &["channel", "notify", "channel1", "to all"]).ok();
        let reached = async || {
            let sql = "SELECT COUNT(*), COUNT(DISTINCT stream) FROM herald_events WHERE type = $1";
            let kind = "Acme.Notifications:UserWasNotified";
            let row: Option<(i64, i64)> = store.database().fetch_optional(sql, (kind,)).await.unwrap();
            row.unwrap()
        };
        let mut seen = 0;
        for _ in 0..4 {
            let daemon = Daemon::start(&database, &[]);
            let mut wake = store.wake();
            while seen == reached().await.0 {
                wake.arm();
                wake.wait(std::time::Duration::from_millis(5)).await;
            }
            daemon.kill();
            seen = reached().await.0;
        }
        assert!(seen < users, "it was never in the middle");
        let daemon = Daemon::start(&database, &[]);
        herald(&database, &["user", "notify", "direct", "hello"]).ok();
        until(&database, &["user", "inbox", "direct"], |out| out.contains("* hello"));
        until(&database, &["user", "inbox", "user-5999"], |out| out.contains("* to all"));
        until(&database, &["sub", "timers", "channel_fanout", "-o", "plain", "--no-header"], str::is_empty);
        assert_eq!(daemon.stop(), Some(143));
        assert_eq!(reached().await, (users + 1, users + 1));
        store.close().await;
    }
}

/// Subscribes `user-0` and so many more to a channel.
pub(crate) async fn subscribe(store: &store::Store, channel: &str, users: i64) {
    use notification_subscribers::UserWasSubscribedToChannel;

    let (channel_id, stream) = (channel.trim_start_matches("channel-"), crate::given::stream(channel));
    let event = |number: i64| {
        let (user_id, channel_id) = (format!("user-{number}"), channel_id.to_owned());
        store::NewEvent::of(&UserWasSubscribedToChannel { user_id, channel_id }).unwrap()
    };
    for first in (0..users).step_by(1_000) {
        let events = (first..users.min(first + 1_000)).map(event).collect();
        store.append(&stream, store::ExpectedVersion::StreamExists, events).await.unwrap();
    }
}
