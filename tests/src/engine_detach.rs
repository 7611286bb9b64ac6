//! Who may detach what: a program its own, and only if nobody runs it any more.

use std::sync::Arc;

use store::Store;
use subscription_engine::{
    Criteria, Definition, Engine, Outcome, Registry, Report, RunMode, State, Status, Subscriber,
};
use testkit::{Collector, Scripted, both, position, positions};

use crate::engine::{Running, append, look, status, until};

/// An engine of this program with subscribers of these ids, each of which also writes what it gets.
fn program(store: &Store, name: &str, ids: &[&str]) -> Engine {
    let subscribers = ids.iter().map(|id| Collector::new(Definition::projector(*id)) as Arc<dyn Subscriber>);
    Engine::new(store.clone(), Registry::new(subscribers).unwrap(), name)
}

fn detached(id: &str, from: Status) -> Report {
    vec![(id.to_owned(), Outcome::Became { from, to: Status::Detached })]
}

both! {
    /// PL-042, PL-046, PL-097: run detaches what is gone; set-up, boot and pause do not.
    async fn pl_042_pl_046_pl_097_run_detaches(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 1).await;
        let all = Criteria::all();
        program(&store, "acme", &["a"]).catch_up(&all).await.unwrap();
        let later = program(&store, "acme", &[]);
        assert_eq!(later.set_up(&all, false).await.unwrap(), Report::new());
        assert_eq!(later.boot(&all, None).await.unwrap(), Report::new());
        assert_eq!(status(&later, "a").await, Status::Active);
        assert_eq!(later.run(&all, None).await.unwrap(), detached("a", Status::Active));
        let now = look(&later, "a").await;
        assert_eq!((now.state.resume(), position(&now)), (subscription_engine::Resume::Active, 1));
        assert_eq!(later.run(&all, None).await.unwrap(), Report::new());
        let paused = program(&store, "acme", &["b"]);
        paused.catch_up(&all).await.unwrap();
        later.pause(&Criteria::id("b"), "no code needed").await.unwrap();
        assert_eq!(status(&later, "b").await, Status::Paused);
    }

    /// PL-012: what is new and has no code is in error, and set up when its code is back.
    async fn pl_012_set_up_without_code(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let all = Criteria::all();
        program(&store, "acme", &["a"]).discover().await.unwrap();
        let stranger = program(&store, "stranger", &[]);
        let report = stranger.set_up(&all, false).await.unwrap();
        assert!(matches!(report[0].1, Outcome::Refused { .. }), "{report:?}");
        assert_eq!(status(&stranger, "a").await, Status::New);

        let later = program(&store, "acme", &["b"]);
        let report = later.set_up(&all, false).await.unwrap();
        assert!(matches!(&report[0].1, Outcome::Failed { failure } if failure.message().contains("\"a\"")), "{report:?}");
        assert_eq!(report[1].1, Outcome::Became { from: Status::New, to: Status::Booting });
        let now = look(&later, "a").await;
        assert!(matches!(now.state, State::Error { resume: subscription_engine::Resume::New, .. }), "{now:?}");
        program(&store, "acme", &["a"]).set_clock(testkit::T0.plus(std::time::Duration::from_secs(5)), std::time::Duration::from_secs(9)).await.unwrap();
        assert_eq!(status(&later, "a").await, Status::Active);
    }

    /// PL-043: whatever its status, with what it was remembered.
    async fn pl_043_every_status_is_detached(database: TestDatabase) {
        let store = database.store().await;
        let all = Criteria::all();
        append(&store, 1).await;
        let once = Scripted::idle(Definition::plain("finished", RunMode::Once));
        let broken = Scripted::idle(Definition::projector("error")).with_setup(|_| Box::pin(async { Err("no".into()) }));
        let idle = |id: &str| Arc::new(Scripted::idle(Definition::projector(id))) as Arc<dyn Subscriber>;
        let ids = ["booting", "new", "paused"];
        let mut subscribers: Vec<Arc<dyn Subscriber>> = ids.into_iter().map(idle).collect();
        subscribers.extend([Arc::new(once) as _, Arc::new(broken) as _]);
        let full = Engine::new(store.clone(), Registry::new(subscribers).unwrap(), "acme");
        full.set_up(&Criteria { ids: Some(["booting", "error", "finished", "paused"].map(String::from).to_vec()), groups: None }, false).await.unwrap();
        full.boot(&Criteria::id("finished"), None).await.unwrap();
        full.pause(&Criteria::id("paused"), "test").await.unwrap();

        let report = program(&store, "acme", &[]).run(&all, None).await.unwrap();
        let from: Vec<Status> = report.iter().map(|(_, outcome)| match outcome {
            Outcome::Became { from, to: Status::Detached } => *from,
            outcome => panic!("{outcome:?}"),
        }).collect();
        assert_eq!(from, [Status::Booting, Status::Error, Status::Finished, Status::New, Status::Paused]);

        let report = full.reactivate(&all, "back").await.unwrap();
        let to: Vec<Status> = report.iter().map(|(_, outcome)| match outcome {
            Outcome::Became { to, .. } => *to,
            outcome => panic!("{outcome:?}"),
        }).collect();
        assert_eq!(to, [Status::Booting, Status::New, Status::Active, Status::New, Status::Booting]);
    }

    /// PL-045: detaching obeys the criteria.
    async fn pl_045_detaching_obeys_the_criteria(database: TestDatabase) {
        let store = database.store().await;
        program(&store, "acme", &["a"]).catch_up(&Criteria::all()).await.unwrap();
        let later = program(&store, "acme", &[]);
        let elsewhere = Criteria { groups: Some(vec!["processor".to_owned()]), ids: None };
        assert_eq!(later.run(&elsewhere, None).await.unwrap(), Report::new());
        assert_eq!(status(&later, "a").await, Status::Active);
    }

    /// E-05: another program on the same database detaches nothing, neither by a run nor by a worker.
    async fn e05_another_program_detaches_nothing(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 2).await;
        let acme = program(&store, "acme", &["a"]);
        acme.catch_up(&Criteria::all()).await.unwrap();
        let other_store = database.store().await;
        let stranger = program(&other_store, "stranger", &["b"]);
        let report = stranger.run(&Criteria::all(), None).await.unwrap();
        assert!(matches!(&report[..], [(id, Outcome::Refused { .. })] if id == "a"), "{report:?}");
        let worker = Running::start(&stranger).await;
        until(&stranger, "b", |now| position(now) == 2).await;
        worker.stop().await;
        assert_eq!(status(&acme, "a").await, Status::Active);
        assert!(matches!(stranger.reactivate(&Criteria::id("a"), "not mine").await.unwrap()[0].1, Outcome::Refused { .. }));
    }

    /// E-05: a version that is rolled out half detaches nothing that the other half still runs; a worker that
    /// stops cleanly leaves no row, and then what is gone is gone.
    async fn e05_a_half_rolled_out_version_detaches_nothing(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 1).await;
        let old = program(&store, "acme", &["v1"]);
        let old_worker = Running::start(&old).await;
        until(&old, "v1", |now| now.state.status() == Status::Active).await;
        let new_store = database.store().await;
        let new = program(&new_store, "acme", &["v2"]);
        let new_worker = Running::start(&new).await;
        until(&new, "v2", |now| now.state.status() == Status::Active).await;
        new.run(&Criteria::all(), None).await.unwrap();
        assert_eq!(status(&new, "v1").await, Status::Active);
        let mut live: Vec<_> = new.live_workers().await.unwrap().into_iter().flat_map(|worker| worker.subscriber_ids).collect();
        live.sort();
        assert_eq!(live, ["v1", "v2"]);

        old_worker.stop().await;
        assert_eq!(new.live_workers().await.unwrap().len(), 1);
        new.run(&Criteria::id("v1"), None).await.unwrap();
        assert_eq!(status(&new, "v1").await, Status::Detached);
        new_worker.stop().await;
        assert!(new.live_workers().await.unwrap().is_empty());
    }

    /// E-05: a worker that was killed counts for half a minute, by the database's clock, and then no more.
    async fn e05_a_dead_worker_protects_nothing(database: TestDatabase) {
        let store = database.store().await;
        let old = program(&store, "acme", &["v1"]);
        let worker = Running::start(&old).await;
        until(&old, "v1", |now| now.state.status() == Status::Active).await;
        worker.kill().await;
        let new = program(&store, "acme", &[]);
        new.run(&Criteria::all(), None).await.unwrap();
        assert_eq!(status(&new, "v1").await, Status::Active);
        let long_ago = "UPDATE herald_workers SET last_progress_at = $1";
        store.database().execute(long_ago, (testkit::T0,)).await.unwrap();
        assert_eq!(new.run(&Criteria::all(), None).await.unwrap(), detached("v1", Status::Active));
        // Some day its row goes as well.
        Running::start(&new).await.stop().await;
        let rows: Option<(i64,)> = store.database().fetch_optional("SELECT COUNT(*) FROM herald_workers", ()).await.unwrap();
        assert_eq!(rows, Some((0,)));
    }

    /// PL-128, PL-130, PL-131: a new version beside the old one, the switch, and the way back.
    async fn pl_128_pl_130_pl_131_a_new_version_and_back(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 1).await;
        let (old, new) = (program(&store, "acme", &["v1"]), program(&store, "acme", &["v2"]));
        let all = Criteria::all();
        old.catch_up(&all).await.unwrap();
        new.set_up(&all, false).await.unwrap();
        new.boot(&all, None).await.unwrap();
        assert_eq!((status(&new, "v1").await, status(&new, "v2").await), (Status::Active, Status::Active));
        new.run(&all, None).await.unwrap();
        assert_eq!(status(&new, "v1").await, Status::Detached);
        old.set_up(&all, false).await.unwrap();
        old.boot(&all, None).await.unwrap();
        assert_eq!(status(&old, "v1").await, Status::Detached, "nothing comes back by itself");
        old.reactivate(&Criteria::id("v1"), "back").await.unwrap();
        append(&store, 1).await;
        old.run(&all, None).await.unwrap();
        assert_eq!((status(&old, "v1").await, status(&old, "v2").await), (Status::Active, Status::Detached));
        let report = new.tear_down_detached(&all, "gone").await.unwrap();
        assert_eq!(report, [("v2".to_owned(), Outcome::Removed { failure: None })]);
        let kept = Collector::new(Definition::projector("v1")).positions(&store).await;
        assert_eq!(kept, positions(2));
    }
}
