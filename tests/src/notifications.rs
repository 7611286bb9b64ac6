//! The acceptance scenarios N-01 to N-06, through the built program, with the daemon up and with it down.

use testkit::{TestDatabase, both};

use crate::program::{Daemon, herald, until};

/// `run`: everything has caught up, whether by a daemon or here.
fn run(database: &TestDatabase, daemon: Option<&Daemon>) {
    if daemon.is_none() {
        herald(database, &["worker", "--until-caught-up"]).ok();
    }
    until(database, &["sub", "show", "inbox_1"], |out| out.contains("lag 0 positions"));
}

fn notification_in(sent: &str) -> &str {
    let id = sent.strip_prefix("Sent notification ").and_then(|rest| rest.split(' ').next()).unwrap();
    id.parse::<uuid::Uuid>().unwrap();
    id
}

/// Tells N-01 to N-04 as one story.
fn notify_read_acknowledge(database: &TestDatabase, daemon: Option<&Daemon>) {
    // N-01
    let sent = herald(database, &["user", "notify", "user1", "The first message"]).ok();
    let id = notification_in(&sent);
    assert_eq!(sent, format!("Sent notification {id} to user user1.\n"));
    let event = herald(database, &["events", "show", "1", "-o", "json"]).json();
    let event = &event["data"];
    assert_eq!(event["position"], "1");
    assert_eq!(event["stream"], "user-user1");
    assert_eq!(event["version"], "0");
    assert_eq!(event["type"], "Acme.Notifications:UserWasNotified");
    let payload = event["payload"].as_object().unwrap();
    assert_eq!(payload.keys().collect::<Vec<_>>(), ["userId", "notificationId", "message", "timestamp"]);
    assert_eq!(payload["notificationId"], id);
    assert!(event["correlation_id"].is_null() && event["causation_id"].is_null());

    // N-02
    run(database, daemon);
    let inbox = herald(database, &["user", "inbox", "user1"]).ok();
    assert_eq!(inbox, format!("1 pending message(s) for user user1:\n* The first message (id: {id})\n"));
    assert_eq!(herald(database, &["user", "inbox", "user2"]).ok(), "0 pending message(s) for user user2:\n");

    // N-04, before and after there is something to acknowledge
    let refused = |user: &str, id: &str| {
        let said = herald(database, &["user", "acknowledge", user, id]).fails(1);
        assert_eq!(said.stdout, format!("No notification with id {id} pending for user {user}\n"));
    };
    refused("user1", "non-existing-id");
    refused("user2", id);

    // N-03
    let done = herald(database, &["user", "acknowledge", "user1", id]).ok();
    assert_eq!(done, format!("Notification {id} was acknowledged.\n"));
    let of_user = || herald(database, &["events", "list", "--stream", "user-user1", "-o", "json"]).json();
    let event = &of_user()["data"][1];
    assert_eq!(event["type"], "Acme.Notifications:UserHasAcknowledgedNotification");
    assert_eq!(event["version"], "1");
    run(database, daemon);
    assert_eq!(herald(database, &["user", "inbox", "user1"]).ok(), "0 pending message(s) for user user1:\n");
    refused("user1", id);
    assert_eq!(of_user()["data"].as_array().unwrap().len(), 2);
}

both! {
    async fn n01_to_n04_without_a_daemon(database: TestDatabase) {
        notify_read_acknowledge(&database, None);
    }

    async fn n01_to_n04_with_a_daemon(database: TestDatabase) {
        let daemon = Daemon::start(&database, &[]);
        until(&database, &["sub", "list"], |out| out.contains("active"));
        notify_read_acknowledge(&database, Some(&daemon));
        assert_eq!(daemon.stop(), Some(143));
    }

    async fn n05_status_and_setup(database: TestDatabase) {
        let status = herald(&database, &["eventstore", "status"]).ok();
        let lines: Vec<&str> = status.lines().collect();
        assert_eq!(lines[0], "Displaying status information for 1 Event Store backend(s):");
        assert_eq!(lines[1], "");
        assert_eq!(lines[2], "Event Store \"Acme.Notifications:EventStore\"");
        assert_eq!(lines[3], "-".repeat(79));
        let names: Vec<&str> = lines[4..9].iter().map(|line| line.split_once(": ").unwrap().0).collect();
        assert_eq!(names, ["Host", "Port", "Database", "Driver", "Username"]);
        assert_eq!(lines[9], "Table: acme_notifications_events (missing) !!!");

        let setup = herald(&database, &["eventstore:setup", "Acme.Notifications:EventStore"]).ok();
        let lines: Vec<&str> = setup.lines().collect();
        assert_eq!(lines[0], "Setting up Event Store \"Acme.Notifications:EventStore\"");
        assert!(lines[1].starts_with(": Creating database table \"acme_notifications_events\" in database \""));
        assert!(lines[1].ends_with("...."));
        assert_eq!(lines.last(), Some(&"SUCCESS"));
        if database.is_postgres() {
            assert!(lines[1].ends_with(" on host 127.0.0.1...."), "{}", lines[1]);
        }
        let again = herald(&database, &["eventstore", "setup", "Acme.Notifications:EventStore"]).ok();
        assert!(again.ends_with("SUCCESS\n") && !again.contains("Creating"), "{again}");
        let status = herald(&database, &["eventstore:status"]).ok();
        assert!(status.contains("Table: acme_notifications_events (exists)"), "{status}");

        let unknown = herald(&database, &["eventstore", "setup", "Acme.Other:Store"]).fails(1);
        assert_eq!(unknown.stdout, "There is no Event Store \"Acme.Other:Store\" configured\n");
    }

    async fn n06_replay(database: TestDatabase) {
        let sent = herald(&database, &["user", "notify", "user1", "The first message"]).ok();
        let id = notification_in(&sent).to_owned();
        run(&database, None);
        let store = database.open().await;
        let row = || async {
            let sql = "SELECT notification_id, user_id, message, timestamp FROM acme_notifications_inbox";
            store.database().fetch_all::<(String, String, String, store::Timestamp)>(sql, ()).await.unwrap()
        };
        let before = row().await;
        store.database().execute("DELETE FROM acme_notifications_inbox", ()).await.unwrap();
        for name in ["inbox", "acme.notifications:inbox"] {
            let replayed = herald(&database, &["projection", "replay", name]).ok();
            assert_eq!(
                replayed.lines().collect::<Vec<_>>(),
                [
                    "Replaying events for projection \"acme.notifications:inbox\" ...",
                    "    1 [============================]",
                    "Replayed 1 event(s).",
                ]
            );
        }
        let after = row().await;
        assert_eq!(after, before);
        assert_eq!(after[0].0, id);
        let event = herald(&database, &["events", "show", "1", "-o", "json"]).json();
        assert_eq!(serde_json::json!(after[0].3), event["data"]["payload"]["timestamp"]);
        herald(&database, &["projection", "replay", "nothing"]).fails(1);
    }

    /// NEOS-31: the list of projections, to the letter.
    async fn neos31_projection_list(database: TestDatabase) {
        let list = herald(&database, &["projection:list"]).ok();
        let rule = "-".repeat(79);
        let line = |name: &str, class: &str| format!("  {name:<40}Acme\\Notifications\\{class}Projector\n");
        let head = "There are 4 projections configured:\n\nPACKAGE \"ACME.NOTIFICATIONS\":\n";
        let (archive, members) = (line("archive", "Archive"), line("channel-members", "ChannelMembers"));
        let (deliveries, inbox) = (line("deliveries", "Deliveries"), line("inbox", "Inbox"));
        assert_eq!(list, format!("{head}{rule}\n{archive}{members}{deliveries}{inbox}"));
    }

    /// Work that is left undone is no success, whether it failed now or before.
    async fn a_subscription_in_error_is_not_caught_up(database: TestDatabase) {
        herald(&database, &["user", "notify", "user1", "hello"]).ok();
        let store = database.open().await;
        store.database().execute("ALTER TABLE acme_notifications_inbox RENAME TO mislaid", ()).await.unwrap();
        for _ in 0..2 {
            let said = herald(&database, &["worker", "--until-caught-up"]).fails(1);
            assert!(said.stderr.contains("inbox_1 is in error"), "{said:?}");
        }
        store.database().execute("ALTER TABLE mislaid RENAME TO acme_notifications_inbox", ()).await.unwrap();
        herald(&database, &["sub", "reactivate", "inbox_1"]).ok();
        let said = herald(&database, &["worker", "--until-caught-up"]);
        assert!(said.stderr.contains("caught up, 1 event(s) handled"), "{said:?}");
        said.ok();
    }

    /// E-05: who notifies on a bare machine and starts the worker later loses nothing.
    async fn e05_notify_on_a_bare_machine_then_start_the_worker(database: TestDatabase) {
        let said = herald(&database, &["user", "notify", "user1", "early"]);
        assert!(said.stderr.contains("inbox_1"), "{said:?}");
        said.ok();
        let _daemon = Daemon::start(&database, &[]);
        until(&database, &["user", "inbox", "user1"], |out| out.contains("* early (id: "));
    }

    /// Operators steer while the daemon runs: what they do holds, and the daemon goes on from there.
    async fn pause_and_reactivate_while_the_daemon_runs(database: TestDatabase) {
        let _daemon = Daemon::start(&database, &[]);
        let is_active = |out: &str| out.contains("inbox_1\tprojector\tactive");
        until(&database, &["sub", "list", "-o", "plain"], is_active);
        let paused = herald(&database, &["sub", "pause", "inbox_1", "--reason", "a look"]).ok();
        assert_eq!(paused, "inbox_1: was active, is paused\n");
        herald(&database, &["sub", "pause", "inbox_1"]).fails(5);
        herald(&database, &["user", "notify", "user1", "while paused"]).ok();
        let shown = herald(&database, &["sub", "show", "inbox_1", "-o", "json"]).json();
        assert_eq!(shown["data"]["status"], "paused");
        assert_eq!(shown["data"]["history"].as_array().unwrap().last().unwrap()["why"], "a look");
        herald(&database, &["sub", "reactivate", "inbox_1"]).ok();
        until(&database, &["user", "inbox", "user1"], |out| out.starts_with("1 pending"));
    }
}

/// Neither a stopped server nor anything else holds up the end of the daemon for long.
#[tokio::test]
async fn a_daemon_ends_in_time_when_its_server_is_gone() {
    let Some(cluster) = testkit::own_postgres_or_left_out("a_daemon_ends_in_time_when_its_server_is_gone")
    else {
        return;
    };
    let database = TestDatabase::schema_in(&cluster.url("postgres")).await;
    let daemon = Daemon::start(&database, &[]);
    until(&database, &["sub", "list"], |out| out.lines().skip(1).all(|line| line.contains("idle")));
    drop(cluster);
    let start = std::time::Instant::now();
    assert_eq!(daemon.stop(), Some(143));
    assert!(start.elapsed() < std::time::Duration::from_secs(30), "it took {:?}", start.elapsed());
}
