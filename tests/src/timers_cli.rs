//! `herald sub timers`: what an operator sees and decides, through the built program.

use subscription_engine::{Criteria, Definition, Poison, RetryStrategy};
use testkit::{Alarms, both};

use crate::program::herald;
use crate::timers::{PATIENCE, after, ask, at, ringing};

both! {
    /// E-43, C-06, C-10: listed in pages, shown with the subscription, retried and discarded, counted when it is removed.
    async fn e43_c10_timers_from_the_command_line(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let definition = Definition::processor("alarms").with_retry(RetryStrategy::None).with_poison(Poison::park());
        let alarms = Alarms::new(definition);
        let engine = ringing(&store, &alarms).await;
        alarms.fail_at(&["x\u{202e}y"]);
        ask(&store, &[at("x\u{202e}y", 5), at("soon", 10), at("later", 20)]).await;
        engine.set_clock(after(7), PATIENCE).await.unwrap();
        store.clock().set(after(12)).await.unwrap();
        let herald = |arguments: &[&str]| {
            let arguments: Vec<&str> = ["--test-mode"].iter().chain(arguments).copied().collect();
            herald(&database, &arguments)
        };

        let list = herald(&["sub", "timers", "alarms", "-o", "json"]).json();
        assert_eq!(list["schema"], "herald.sub.timers/1");
        let rows = list["data"].as_array().unwrap();
        let states: Vec<_> = rows.iter().map(|row| (row["key"].as_str().unwrap(), row["state"].as_str().unwrap())).collect();
        assert_eq!(states, [("x\u{202e}y", "held"), ("soon", "overdue"), ("later", "pending")]);
        assert_eq!(rows[1]["payload"]["key"], "soon");
        assert_eq!(rows[1]["cause_position"], "2");
        let table = herald(&["sub", "timers", "alarms"]);
        assert!(table.stderr.contains("--retry KEY"), "{table:?}");
        let table = table.ok();
        assert!(table.contains(r"x\u{202e}y") && table.contains(r"cannot ring x\u{202e}y"), "{table}");
        let page = herald(&["sub", "timers", "alarms", "--limit", "2", "-o", "json"]).json();
        let rest = herald(&["sub", "timers", "alarms", "-o", "json", "--after", page["next"].as_str().unwrap()]).json();
        assert_eq!((rest["data"].as_array().unwrap().len(), &rest["data"][0]["key"]), (1, &"later".into()));

        let shown = herald(&["sub", "show", "alarms"]).ok();
        assert!(shown.contains("3 pending, 1 overdue, 1 held, the first since 2s ago"), "{shown}");
        let list = herald(&["sub", "list"]).ok();
        assert!(list.contains("1 timer(s) held"), "{list}");

        herald(&["sub", "timers", "nobody"]).fails(3);
        herald(&["sub", "timers", "alarms", "--after", "yesterday"]).fails(2);
        herald(&["sub", "timers", "alarms", "--retry", "soon"]).fails(3);
        herald(&["sub", "timers", "alarms", "--discard", "soon"]).fails(2);
        let asked = herald(&["sub", "timers", "alarms", "--discard", "soon", "--reason", "no need"]).fails(2);
        assert!(asked.stderr.contains("--yes"), "{asked:?}");
        let discarded = herald(&["sub", "timers", "alarms", "--discard", "soon", "--reason", "no need", "--yes"]).ok();
        assert_eq!(discarded, "soon: is discarded\n");
        let retried = herald(&["sub", "timers", "alarms", "--retry", "x\u{202e}y", "--reason", "fixed"]).ok();
        assert_eq!(retried, "x\\u{202e}y: is tried again\n");
        let history = engine.history("alarms", 2).await.unwrap();
        assert_eq!(history[0].why, "discarded timer \"soon\": no need");
        alarms.fail_at(&[]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(alarms.count(&store).await, 1);

        let remove = herald(&["sub", "remove", "alarms"]).fails(2);
        assert!(remove.stderr.contains("forgets 1 timer(s)"), "{remove:?}");
        herald(&["sub", "remove", "alarms", "--yes"]).ok();
        assert_eq!(engine.timers("alarms", None, 10).await.unwrap(), []);
    }
}
