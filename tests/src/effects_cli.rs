//! `herald effects`: what an operator sees and decides, through the built program.

use std::sync::Arc;

use subscription_engine::{Answer, Criteria, Engine};
use testkit::{Planner, Receiver, TestDatabase, both};

use crate::effects::{ask, ledger, mailing, posting};
use crate::engine::engine;
use crate::program::herald;

/// A log with three effects: one done, one that failed, one that is held.
async fn three(database: &TestDatabase) -> (Engine, Vec<String>) {
    let store = database.store().await;
    let receiver = Arc::new(Receiver::new("mail").answering(|effect| match effect.destination.as_str() {
        "a@b" => Answer::Done { detail: "250 OK".to_owned() },
        _ => Answer::Failed { why: "550 no such user".to_owned() },
    }));
    let engine = posting(engine(&store, vec![Planner::new(mailing())]), &receiver);
    engine.set_up(&Criteria::all(), false).await.unwrap();
    ask(&store, 0, &["a@b", "x\u{202e}y@b"]).await;
    engine.catch_up(&Criteria::all()).await.unwrap();
    ask(&store, 2, &["c@d"]).await;
    engine.run(&Criteria::all(), None).await.unwrap();
    let records = ledger(&engine).await;
    engine.hold_effect(records[2].effect.id, "look first").await.unwrap();
    let ids = records.iter().map(|record| record.effect.id.to_string()).collect();
    (engine, ids)
}

both! {
    /// E-50, C-06, C-10: listed, shown, and steered with a reason; what cannot be is said with its code.
    async fn e50_c10_effects_from_the_command_line(database: TestDatabase) {
        let (engine, ids) = three(&database).await;
        let list = herald(&database, &["effects", "list", "-o", "json"]).json();
        assert_eq!(list["schema"], "herald.effects.list/1");
        let states: Vec<_> = list["data"].as_array().unwrap().iter().map(|row| row["state"].clone()).collect();
        assert_eq!(states, ["held", "failed", "done"]);
        let failed = herald(&database, &["effects", "list", "--state", "failed", "--no-header", "-o", "plain"]).ok();
        assert!(failed.starts_with(&ids[1]) && failed.contains("550 no such user"), "{failed}");
        assert!(failed.contains(r"x\u{202e}y@b") && failed.lines().count() == 1, "{failed}");
        let page = herald(&database, &["effects", "list", "--limit", "2", "-o", "json"]).json();
        let rest = herald(&database, &["effects", "list", "-o", "json", "--before", page["next"].as_str().unwrap()]).json();
        assert_eq!(rest["data"][0]["id"], ids[0].as_str());

        let shown = herald(&database, &["effects", "show", &ids[1]]).ok();
        for text in ["failed since", "550 no such user", "attempt 1  started", "herald effects retry"] {
            assert!(shown.contains(text), "{shown}");
        }
        let sub = herald(&database, &["sub", "show", "mailing"]).ok();
        assert!(sub.contains("0 pending, 1 held"), "{sub}");

        let released = herald(&database, &["effects", "release", &ids[2], "--reason", "it is fine"]).ok();
        assert_eq!(released, format!("{}: is pending\n", ids[2]));
        herald(&database, &["effects", "release", &ids[2]]).fails(5);
        herald(&database, &["effects", "hold", &ids[0]]).fails(5);
        herald(&database, &["effects", "retry", "00000000-0000-0000-0000-000000000000"]).fails(3);
        herald(&database, &["effects", "show", "00000000-0000-0000-0000-000000000000"]).fails(3);
        herald(&database, &["effects", "show", "nonsense"]).fails(2);
        herald(&database, &["effects", "list", "--state", "lost"]).fails(2);
        herald(&database, &["effects", "release"]).fails(2);
        let asked = herald(&database, &["effects", "discard", &ids[1]]).fails(2);
        assert!(asked.stderr.contains("discarding 1 effect(s)") && asked.stderr.contains("--yes"), "{asked:?}");
        let discarded = herald(&database, &["effects", "discard", "--state", "failed", "--yes", "--reason", "gone"]);
        assert_eq!(discarded.ok(), format!("{}: is discarded\n", ids[1]));
        let nothing = herald(&database, &["effects:discard", "--all", "--yes"]);
        assert!(nothing.stderr.contains("nothing to discard"), "{nothing:?}");
        let history = herald(&database, &["effects", "show", &ids[1], "-o", "json"]).json();
        let last = history["data"]["history"].as_array().unwrap().last().unwrap().clone();
        assert_eq!((&last["what"], &last["why"]), (&"discarded".into(), &"gone".into()));

        let remove = herald(&database, &["sub", "remove", "mailing"]).fails(2);
        assert!(remove.stderr.contains("holds 1 planned effect(s)"), "{remove:?}");
        herald(&database, &["sub", "remove", "mailing", "--yes"]).ok();
        let held = herald(&database, &["effects", "list", "--state", "held"]).ok();
        assert!(held.contains("its subscription was removed"), "{held}");
        drop(engine);
    }
}
