//! kill -9 of the daemon, again and again, while notifications stream in.

use std::time::{Duration, Instant};

use aggregate::{Provenance, Repository};
use notification_subscribers::{User, UserCommand, UserContext, UserId};
use store::Store;
use testkit::{Random, both};

use crate::program::{Daemon, herald, until};

/// How often the daemon is killed.
const KILLS: usize = 200;
/// The users who are notified, in turn.
const USERS: usize = 5;

/// Notifies until told to stop; every third notification is acknowledged at once. Answers with the number
/// of notifications that must be pending at the end.
async fn notify(store: Store, stop: tokio::sync::watch::Receiver<bool>) -> usize {
    let users = Repository::<User>::new(store.clone());
    let (mut count, mut pending) = (0, 0);
    // Streams are folded anew for each command; this keeps them short.
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    while !*stop.borrow() {
        let user_id = UserId::new(format!("user{}", count % USERS)).unwrap();
        let stream = user_id.stream();
        let context = UserContext { user_id, now: store.clock().now().await.unwrap() };
        let notification_id = format!("n{count}");
        let mut commands = vec![UserCommand::Notify {
            notification_id: notification_id.clone(),
            message: format!("message {count}"),
        }];
        if count % 3 == 0 {
            commands.push(UserCommand::Acknowledge { notification_id });
        } else {
            pending += 1;
        }
        for command in &commands {
            users.execute(&stream, command, &context, &Provenance::default()).await.unwrap();
        }
        count += 1;
        pace.tick().await;
    }
    pending
}

both! {
    async fn kill_9_at_200_random_moments_loses_and_doubles_nothing(database: TestDatabase) {
        let mut random = Random::new();
        let store = database.store().await;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let notifying = tokio::spawn(notify(store.clone(), stopped));
        for _ in 0..KILLS {
            let daemon = Daemon::start(&database, &[]);
            // From before it has connected to well inside its work.
            tokio::time::sleep(Duration::from_micros(random.below(120_000))).await;
            daemon.kill();
        }
        stop.send_replace(true);
        let pending = notifying.await.unwrap();

        // No manual step: a daemon is started, nothing else.
        let start = Instant::now();
        let _daemon = Daemon::start(&database, &[]);
        until(&database, &["sub", "show", "inbox_1"], |out| out.contains("lag 0 positions"));
        println!("caught up within {:?}", start.elapsed());
        let shown = herald(&database, &["sub", "show", "inbox_1", "-o", "json"]).json();
        assert_eq!(shown["data"]["status"], "active", "{shown}");
        assert_eq!(shown["data"]["position"], shown["data"]["head"], "{shown}");

        let sql = "SELECT notification_id, user_id FROM acme_notifications_inbox ORDER BY notification_id";
        let rows: Vec<(String, String)> = store.database().fetch_all(sql, ()).await.unwrap();
        assert_eq!(rows.len(), pending);
        for (notification, user) in rows {
            let count: usize = notification[1..].parse().unwrap();
            assert_ne!(count % 3, 0, "{notification} was acknowledged");
            assert_eq!(user, format!("user{}", count % USERS));
        }
    }

    /// Two daemons share a database, and each in turn is killed: no notification is applied twice or lost.
    async fn two_daemons_apply_nothing_twice(database: TestDatabase) {
        let mut random = Random::new();
        let store = database.store().await;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let notifying = tokio::spawn(notify(store.clone(), stopped));
        let mut daemons = [Daemon::start(&database, &[]), Daemon::start(&database, &[])];
        for turn in 0..20 {
            until(&database, &["sub", "list"], |out| out.contains("active"));
            tokio::time::sleep(Duration::from_micros(random.below(50_000))).await;
            std::mem::replace(&mut daemons[turn % 2], Daemon::start(&database, &[])).kill();
        }
        stop.send_replace(true);
        let pending = notifying.await.unwrap();
        until(&database, &["sub", "show", "inbox_1"], |out| out.contains("lag 0 positions"));
        let sql = "SELECT COUNT(*) FROM acme_notifications_inbox";
        let rows: Option<(i64,)> = store.database().fetch_optional(sql, ()).await.unwrap();
        assert_eq!(usize::try_from(rows.unwrap().0).unwrap(), pending);
        for daemon in daemons {
            assert_eq!(daemon.stop(), Some(143));
        }
    }
}
