//! Exactly once: whatever is cut off, and however many work on the same rows.

use std::sync::{Arc, Mutex};

use store::{ExpectedVersion, Json, Store};
use subscription_engine::{
    Criteria, Definition, Engine, EngineError, FaultPoint, Faults, Outcome, Settings, Status, Subscriber,
};
use testkit::{Collector, Held, KillSwitch, Random, Scripted, both, position, positions};

use crate::engine::{Running, append, engine, look, only, until};
use crate::given::all_events;

/// Cuts off one unit in so many, at a random moment.
struct Unlucky {
    random: Mutex<Random>,
    one_in: u64,
}

impl Unlucky {
    fn one_in(one_in: u64) -> Arc<Self> {
        Arc::new(Self { random: Mutex::new(Random::new()), one_in })
    }
}

impl Faults for Unlucky {
    fn strikes(&self, _: FaultPoint, _: &str) -> bool {
        self.random.lock().unwrap().below(self.one_in) == 0
    }
}

/// Answers each event of the log's own with one more.
pub(crate) fn answering(id: &str) -> Arc<dyn Subscriber> {
    let definition = Definition::projector(id).on(["Acme.Test:Happened"]);
    Arc::new(Scripted::new(definition, |events, context| {
        Box::pin(async move {
            let answers = crate::given::stream("answers-1");
            for event in events {
                let mut cause = context.because_of(event);
                cause.append(&answers, ExpectedVersion::Any, "Answered", Json::empty_object())?;
            }
            Ok(())
        })
    }))
}

/// The positions of all events: on PostgreSQL a unit that is cut off leaves a hole behind.
async fn in_the_log(store: &Store) -> Vec<i64> {
    all_events(store).await.iter().map(|event| event.position.0).collect()
}

/// Every event is answered once, and by an event that names it.
async fn assert_answered_once(store: &Store, count: usize) {
    let events = all_events(store).await;
    let (questions, answers): (Vec<_>, Vec<_>) =
        events.into_iter().partition(|event| event.event_type == "Acme.Test:Happened");
    let asked: Vec<_> = questions.iter().map(|event| Some(event.id)).collect();
    let mut answered: Vec<_> = answers.iter().map(|event| event.causation_id).collect();
    assert_eq!(answered.len(), count);
    answered.sort_by_key(|cause| asked.iter().position(|id| id == cause));
    assert_eq!(answered, asked);
}

fn small_units(engine: Engine) -> Engine {
    engine.with_settings(Settings { unit_events: 7, ..Settings::default() })
}

both! {
    /// E-20, E-70: cut off before, inside and after the commit, what was handled is what is stored.
    async fn e20_a_unit_cut_off_at_its_commit(database: TestDatabase) {
        let store = database.store().await;
        append(&store, 3).await;
        for point in [FaultPoint::BeforeCommit, FaultPoint::InsideCommit, FaultPoint::AfterCommit] {
            let id = format!("{point:?}").to_lowercase();
            let collector = Collector::new(Definition::projector(&id));
            let kill = KillSwitch::new(&id, [point]);
            let unlucky = engine(&store, vec![collector.clone()]).with_faults(kill.clone());
            let error = unlucky.catch_up(&Criteria::id(&id)).await.unwrap_err();
            assert!(matches!(error, EngineError::Injected(at) if at == point), "{error}");
            assert!(kill.is_spent());

            let next = engine(&database.store().await, vec![collector.clone()]);
            let stands = position(&look(&next, &id).await);
            match point {
                FaultPoint::BeforeCommit => assert_eq!(stands, 0),
                FaultPoint::AfterCommit => assert_eq!(stands, 3),
                // Nobody knows; but the position knows what the table has.
                _ => {}
            }
            next.catch_up(&Criteria::id(&id)).await.unwrap();
            assert_eq!(collector.positions(&store).await, positions(3));
        }
    }

    /// E-20: many cuts at random moments, with a new process after each; a second time is an error of the table.
    async fn e20_many_cuts_at_random_moments(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("collector"));
        let subscribers: Vec<Arc<dyn Subscriber>> = vec![collector.clone(), answering("answering")];
        append(&store, 300).await;
        let unlucky = Unlucky::one_in(6);
        let mut cuts = 0;
        loop {
            let process = small_units(engine(&database.store().await, subscribers.clone())).with_faults(unlucky.clone());
            match process.catch_up(&Criteria::all()).await {
                Err(EngineError::Injected(_)) => cuts += 1,
                Err(error) => panic!("{error}"),
                // Unless it met what is left of the one before, everything is done.
                Ok(report) => {
                    let busy = |(_, outcome): &(String, Outcome)| *outcome == Outcome::Busy;
                    if !report.iter().any(busy) {
                        break;
                    }
                }
            }
            process.store().close().await;
        }
        assert!(cuts > 5, "{cuts} cuts");
        assert_eq!(collector.positions(&store).await, in_the_log(&store).await);
        assert_answered_once(&store, 300).await;
    }

    /// E-60: two workers, each a process of its own as far as the database can tell, with cuts and appends under
    /// way: no event is applied twice, none is left out, and both stand at the head.
    async fn e60_two_workers_on_one_database(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("collector"));
        let subscribers: Vec<Arc<dyn Subscriber>> = vec![collector.clone(), answering("answering")];
        let mut workers = Vec::new();
        for _ in 0..2 {
            let process = small_units(engine(&database.store().await, subscribers.clone()));
            workers.push(Running::start(&process.with_faults(Unlucky::one_in(12))).await);
        }
        for _ in 0..10 {
            append(&store, 10).await;
        }
        let watching = engine(&store, subscribers);
        // The answers come when the questions are behind.
        until(&watching, "answering", |now| position(now) >= 100).await;
        let mut wake = store.wake();
        while all_events(&store).await.len() < 200 {
            wake.wait(std::time::Duration::from_millis(20)).await;
        }
        let head = store.head().await.unwrap().position.0;
        for id in ["collector", "answering"] {
            until(&watching, id, |now| position(now) == head).await;
        }
        for worker in workers {
            worker.stop().await;
        }
        assert_eq!(collector.positions(&store).await, in_the_log(&store).await);
        assert_answered_once(&store, 100).await;
        for id in ["collector", "answering"] {
            assert_eq!(look(&watching, id).await.attempt, 0, "no cut counts as an attempt of {id}");
        }
    }

    /// E-20, PL-053: what another worker has is busy, which is not the same as done.
    async fn pl_053_what_another_worker_has_is_busy(database: TestDatabase) {
        let store = database.store().await;
        let held = Held::while_writing(Definition::projector("held"));
        let first = engine(&store, vec![held.clone()]);
        append(&store, 1).await;
        first.set_up(&Criteria::all(), false).await.unwrap();
        let late = Held::before_writing(Definition::projector("held"));
        let second = engine(&database.store().await, vec![late.clone()]);
        let boot = first.clone();
        let booting = tokio::spawn(async move { boot.boot(&Criteria::all(), None).await });
        held.entered(1).await;
        let other = tokio::spawn(async move { second.boot(&Criteria::all(), None).await });
        if database.is_postgres() {
            assert_eq!(only(other.await.unwrap().unwrap()), Outcome::Busy);
            assert_eq!(late.calls(), 0);
            held.let_go(1);
        } else {
            // There the row is claimed by the one lock: the second finds that it was moved meanwhile.
            late.entered(1).await;
            held.let_go(1);
            until(&first, "held", |now| position(now) == 1).await;
            late.let_go(1);
            assert_eq!(only(other.await.unwrap().unwrap()), Outcome::Busy);
        }
        assert_eq!(only(booting.await.unwrap().unwrap()), Outcome::CaughtUp { events: 1 });
        assert_eq!(held.positions(&store).await, [1]);
    }

    /// E-20: a position that is moved behind a unit's back: all of the unit is undone, and it is busy.
    async fn e20_a_position_moved_behind_a_units_back(database: TestDatabase) {
        let store = database.store().await;
        let collector = Collector::new(Definition::projector("collector"));
        let meddling = Scripted::new(Definition::projector("meddling"), |events, context| {
            Box::pin(async move {
                let (stream, event) = (crate::given::stream("traces-1"), &events[0]);
                context.because_of(event).append(&stream, ExpectedVersion::Any, "Trace", Json::empty_object())?;
                let sql = "UPDATE herald_subscriptions SET position = 77 WHERE id = 'meddling'";
                context.tx().await?.execute(sql, ()).await?;
                Ok(())
            })
        });
        let engine = engine(&store, vec![collector.clone(), Arc::new(meddling)]);
        append(&store, 2).await;
        engine.set_up(&Criteria::all(), false).await.unwrap();
        let report = engine.boot(&Criteria::all(), None).await.unwrap();
        assert_eq!(report[1], ("meddling".to_owned(), Outcome::Busy));
        let now = look(&engine, "meddling").await;
        assert_eq!((now.position, now.attempt, now.state.status()), (None, 0, Status::Booting));
        assert_eq!(all_events(&store).await.len(), 2);
        assert_eq!(collector.positions(&store).await, positions(2));
    }

    /// E-20: paused or removed in the middle of a unit: either the whole unit is done before, or nothing of it.
    async fn e20_operators_in_the_middle_of_a_unit(database: TestDatabase) {
        let store = database.store().await;
        let held = Held::before_writing(Definition::projector("held"));
        let first = engine(&store, vec![held.clone()]);
        append(&store, 2).await;
        first.set_up(&Criteria::all(), false).await.unwrap();
        let boot = first.clone();
        let booting = tokio::spawn(async move { boot.boot(&Criteria::all(), None).await });
        held.entered(1).await;
        let operator = engine(&database.store().await, vec![held.clone()]);
        let pausing = tokio::spawn(async move { operator.pause(&Criteria::all(), "now").await });
        let (booted, paused) = if database.is_postgres() {
            // The row is claimed: the operator waits for the unit.
            held.let_go(2);
            (only(booting.await.unwrap().unwrap()), only(pausing.await.unwrap().unwrap()))
        } else {
            // Nothing is claimed before something is written: the operator goes first.
            let paused = only(pausing.await.unwrap().unwrap());
            held.let_go(2);
            (only(booting.await.unwrap().unwrap()), paused)
        };
        assert!(matches!(paused, Outcome::Became { to: Status::Paused, .. }), "{paused:?}");
        let now = look(&first, "held").await;
        assert_eq!(now.state.status(), Status::Paused);
        let done = position(&now);
        assert_eq!(held.positions(&store).await, positions(done));
        match (booted, done) {
            (Outcome::Busy | Outcome::Refused { .. }, 0) | (Outcome::Refused { .. } | Outcome::CaughtUp { .. } | Outcome::Busy, 2) => {}
            other => panic!("{other:?}"),
        }
    }
}
