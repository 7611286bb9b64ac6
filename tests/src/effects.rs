//! The effect ledger: what handlers plan is sent once it is committed, as long as its subscription is active.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use store::{ExpectedVersion, Json, NewEvent, Store};
use subscription_engine::{
    BoxError, ContextError, Criteria, Definition, Delivery, EffectFilter, EffectRecord, EffectStatus, Engine,
    FaultPoint, NewEffect, Outcome, Pacing, RetryStrategy, Status, Terms,
};
use testkit::{KillSwitch, Planner, Receiver, Scripted, T0, both};

use crate::engine::{Running, engine, look, status, until};
use crate::given::{all_events, stream};

/// Appends an event for each of these destinations; the numbers go on from `first`.
pub(crate) async fn ask(store: &Store, first: usize, destinations: &[&str]) {
    let event = |(index, to): (usize, &&str)| {
        let payload = Json::of(&json!({ "to": to, "number": first + index })).unwrap();
        NewEvent::new("Acme.Test:Asked", payload)
    };
    let events = destinations.iter().enumerate().map(event).collect();
    store.append(&stream("asked-1"), ExpectedVersion::Any, events).await.unwrap();
}

/// A processor that plans a mail for each event that asks for one.
pub(crate) fn mailing() -> Definition {
    Definition::processor("mailing").on(["Acme.Test:Asked"])
}

/// An engine with a planner that is set up, and a receiver of its mails.
pub(crate) async fn mailer(store: &Store, receiver: &Arc<Receiver>) -> Engine {
    let engine = posting(engine(store, vec![Planner::new(mailing())]), receiver);
    engine.set_up(&Criteria::all(), false).await.unwrap();
    engine
}

pub(crate) fn posting(engine: Engine, receiver: &Arc<Receiver>) -> Engine {
    engine.with_deliveries([receiver.clone() as Arc<dyn Delivery>]).unwrap()
}

/// Every effect, oldest first.
pub(crate) async fn ledger(engine: &Engine) -> Vec<EffectRecord> {
    let mut all = engine.effects(&EffectFilter::default(), None, 10_000).await.unwrap();
    all.reverse();
    all
}

/// The statuses of all effects, oldest first.
pub(crate) async fn statuses(engine: &Engine) -> Vec<EffectStatus> {
    ledger(engine).await.iter().map(|record| record.state.status()).collect()
}

/// Waits until this holds of all effects.
pub(crate) async fn until_effects(engine: &Engine, holds: impl Fn(&[EffectRecord]) -> bool) {
    let mut wake = engine.store().wake();
    let patience = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        wake.arm();
        let now = ledger(engine).await;
        if holds(&now) {
            return;
        }
        assert!(tokio::time::Instant::now() < patience, "waited in vain: {now:#?}");
        wake.wait(Duration::from_millis(20)).await;
    }
}

pub(crate) fn all_done(effects: &[EffectRecord]) -> bool {
    effects.iter().all(|record| record.state.status() == EffectStatus::Done)
}

/// What the log says of effects, in order.
pub(crate) async fn said(store: &Store) -> Vec<String> {
    let events = all_events(store).await.into_iter();
    let of_effects =
        events.filter_map(|event| event.event_type.strip_prefix("Herald.Effects:").map(ToOwned::to_owned));
    of_effects.collect()
}

both! {
    /// E-50: planned in the unit, sent afterwards in order, and the log says so with the cause's correlation.
    async fn e50_what_is_planned_is_sent_and_the_log_says_so(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail"));
        let engine = mailer(&store, &receiver).await;
        let mut asked = NewEvent::new("Acme.Test:Asked", Json::of(&json!({ "to": "x", "number": 0 })).unwrap());
        asked.correlation_id = Some("the order".to_owned());
        let cause = asked.id;
        store.append(&stream("asked-1"), ExpectedVersion::Any, vec![asked]).await.unwrap();
        ask(&store, 1, &["x", "x"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();

        assert_eq!(receiver.bodies(), ["0", "1", "2"]);
        let sent = receiver.received().remove(0);
        assert_eq!((sent.cause_id, sent.attempt, sent.key), (cause, 1, sent.id.to_string()));
        assert_eq!(statuses(&engine).await, [EffectStatus::Done; 3]);
        let events = all_events(&store).await;
        let story: Vec<_> = events.iter().filter(|event| event.causation_id == Some(cause)).collect();
        assert_eq!(story[0].event_type, "Herald.Effects:AttemptStarted");
        assert_eq!(story[1].event_type, "Herald.Effects:EffectDone");
        for event in story {
            assert_eq!(event.stream.as_str(), format!("effect-{}", sent.id));
            assert_eq!(event.correlation_id.as_deref(), Some("the order"));
        }
        let (_, history) = engine.effect(sent.id).await.unwrap().unwrap();
        let history: Vec<_> = history.iter().map(|line| (line.what.as_str(), line.why.as_str())).collect();
        assert_eq!(history, [("started", ""), ("done", "taken")]);
        assert_eq!(engine.deliver(&Criteria::all()).await.unwrap().attempts, 0);
    }

    /// E-50, E-20: a unit that is cut off plans nothing or everything, and done again it plans the same once.
    async fn e50_a_unit_done_again_plans_once(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail"));
        mailer(&store, &receiver).await;
        ask(&store, 0, &["a", "b", "a"]).await;
        for point in [FaultPoint::BeforeCommit, FaultPoint::InsideCommit, FaultPoint::AfterCommit] {
            let kill = KillSwitch::new("mailing", [point]);
            let planner = engine(&database.store().await, vec![Planner::new(mailing())]).with_faults(kill.clone());
            planner.run(&Criteria::all(), None).await.unwrap_err();
            assert!(kill.is_spent());
            let planner = engine(&store, vec![Planner::new(mailing())]);
            until_run(&planner).await;
            ask(&store, 0, &["a", "b", "a"]).await;
        }
        let engine = posting(engine(&store, vec![Planner::new(mailing())]), &receiver);
        until_run(&engine).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(receiver.received().len(), 12);
        assert_eq!(ledger(&engine).await.len(), 12);
    }

    /// E-50: only effects of an active subscription are sent: pausing it stops sending at once.
    async fn e50_paused_sends_nothing(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail"));
        let engine = mailer(&store, &receiver).await;
        ask(&store, 0, &["a", "b"]).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        engine.pause(&Criteria::id("mailing"), "test").await.unwrap();
        engine.deliver(&Criteria::all()).await.unwrap();
        assert_eq!(receiver.received().len(), 0);
        let overview = engine.status(&Criteria::id("mailing")).await.unwrap().remove(0);
        assert_eq!((overview.effects.pending, overview.effects.held), (2, 0));
        assert!(overview.effects.oldest.is_some());

        let worker = Running::start(&engine).await;
        engine.reactivate(&Criteria::id("mailing"), "test").await.unwrap();
        until_effects(&engine, all_done).await;
        worker.stop().await;
        assert_eq!(receiver.received().len(), 2);
    }

    /// E-50: a worker sends by itself, several at a time, one after the other for one destination.
    async fn e50_a_worker_sends_in_order_for_each_destination(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail").held());
        let engine = mailer(&store, &receiver).await;
        let worker = Running::start(&engine).await;
        ask(&store, 0, &["a", "b", "c", "a", "b", "c"]).await;
        receiver.has_received(3).await;
        let mut first = receiver.bodies();
        first.sort();
        assert_eq!(first, ["0", "1", "2"]);
        receiver.let_go(6);
        until_effects(&engine, |effects| effects.len() == 6 && all_done(effects)).await;
        worker.stop().await;
        let to = |name: &str| -> Vec<String> {
            receiver.received().into_iter().filter(|it| it.destination == name).map(|it| it.body).collect()
        };
        assert_eq!([to("a"), to("b"), to("c")], [["0", "3"], ["1", "4"], ["2", "5"]]);
        assert_eq!(receiver.clashes(), [""; 0]);
    }

    /// E-50, E-60: two workers, each a process of its own as far as the database can tell, send each effect once and
    /// never at the same time.
    async fn e50_e60_two_workers_never_send_the_same(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail"));
        let watching = mailer(&store, &receiver).await;
        let mut workers = Vec::new();
        for _ in 0..2 {
            let process = engine(&database.store().await, vec![Planner::new(mailing())]);
            workers.push(Running::start(&posting(process, &receiver)).await);
        }
        for round in 0..10 {
            ask(&store, round * 10, &["a", "b", "c", "d", "e", "a", "b", "c", "d", "f"]).await;
        }
        until_effects(&watching, |effects| effects.len() == 100 && all_done(effects)).await;
        for worker in workers {
            worker.stop().await;
        }
        let mut bodies: Vec<usize> = receiver.bodies().iter().map(|body| body.parse().unwrap()).collect();
        bodies.sort_unstable();
        assert_eq!(bodies, (0..100).collect::<Vec<_>>());
        assert_eq!(receiver.clashes(), [""; 0]);
    }

    /// E-50: the last look says no: nothing is sent, and the log says why.
    async fn e50_what_nobody_wants_is_not_sent(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail"));
        receiver.forget("1");
        let engine = mailer(&store, &receiver).await;
        ask(&store, 0, &["a", "a", "a"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(receiver.bodies(), ["0", "2"]);
        let unwanted = ledger(&engine).await.remove(1);
        assert_eq!(unwanted.state.status(), EffectStatus::Unwanted);
        assert_eq!((unwanted.why.as_str(), unwanted.effect.attempt), ("nobody waits for it", 0));
        assert_eq!(said(&store).await.iter().filter(|what| *what == "EffectUnwanted").count(), 1);
    }

    /// E-50: a projector plans nothing while it boots, so a replay sends nothing; what comes afterwards is sent.
    async fn e50_a_replay_plans_nothing(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail"));
        let planner = Planner::new(Definition::projector("mailing").on(["Acme.Test:Asked"]));
        let engine = posting(engine(&store, vec![planner]), &receiver);
        ask(&store, 0, &["a", "a"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        ask(&store, 2, &["a"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let replayed = engine.replay("mailing", "test", |_, _| {}).await.unwrap();
        assert_eq!(replayed, Outcome::CaughtUp { events: 3 });
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(receiver.bodies(), ["2"]);
    }

    /// E-50: not before its time, by the log's clock; moving the clock sends it on the way.
    async fn e50_not_before_its_time(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let receiver = Arc::new(Receiver::new("mail"));
        let later = Scripted::new(mailing(), |events, context| {
            Box::pin(async move {
                for event in events {
                    let not_before = Some(T0.plus(Duration::from_secs(60)));
                    let new = NewEffect { not_before, ..NewEffect::new("mail", "a", "later") };
                    context.because_of(event).plan_effect(new)?;
                }
                Ok(())
            })
        });
        let engine = posting(engine(&store, vec![Arc::new(later)]), &receiver);
        engine.set_up(&Criteria::all(), false).await.unwrap();
        ask(&store, 0, &["a"]).await;
        let patience = Duration::from_secs(30);
        engine.set_clock(T0.plus(Duration::from_millis(59_999)), patience).await.unwrap();
        assert_eq!(receiver.received().len(), 0);
        engine.set_clock(T0.plus(Duration::from_secs(3_600)), patience).await.unwrap();
        assert_eq!(receiver.received().len(), 1);
        let done = ledger(&engine).await.remove(0);
        assert_eq!(done.changed_at, T0.plus(Duration::from_secs(60)), "the clock stops where something is due");
    }

    /// E-51: a destination gets a burst and then the steady pace; others do not wait for it.
    async fn e51_the_pace_of_a_destination(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let pacing = Some(Pacing { interval: Duration::from_secs(10), burst: 2 });
        let receiver = Arc::new(Receiver::new("mail").with_terms(Terms { pacing, ..Terms::default() }));
        let engine = mailer(&store, &receiver).await;
        ask(&store, 0, &["slow", "slow", "slow", "slow", "other"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let mut bodies = receiver.bodies();
        bodies.sort();
        assert_eq!(bodies, ["0", "1", "4"]);
        let patience = Duration::from_secs(30);
        engine.set_clock(T0.plus(Duration::from_millis(9_999)), patience).await.unwrap();
        assert_eq!(receiver.received().len(), 3);
        engine.set_clock(T0.plus(Duration::from_secs(10)), patience).await.unwrap();
        assert_eq!(receiver.bodies()[3..], ["2"]);
        engine.set_clock(T0.plus(Duration::from_secs(100)), patience).await.unwrap();
        assert_eq!(receiver.bodies()[3..], ["2", "3"]);
        let last = ledger(&engine).await.remove(3);
        assert_eq!(last.changed_at, T0.plus(Duration::from_secs(20)));
    }

    /// E-50: a worker that moves one group sends what that group has planned, and nothing else.
    async fn e50_a_worker_sends_for_its_groups(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail"));
        let other = Planner::new(Definition::processor("other").in_group("others").on(["Acme.Test:Asked"]));
        let engine = posting(engine(&store, vec![Planner::new(mailing()), other]), &receiver);
        engine.set_up(&Criteria::all(), false).await.unwrap();
        ask(&store, 0, &["a"]).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        let group = Criteria { groups: Some(vec!["others".to_owned()]), ids: None };
        assert_eq!(engine.deliver(&group).await.unwrap().attempts, 1);
        assert_eq!(receiver.received()[0].subscription_id, "other");
        assert_eq!(engine.deliver(&Criteria::all()).await.unwrap().attempts, 1);
    }

    /// E-50: an effect that breaks a limit is its event's failure, like any other.
    async fn e50_an_effect_beyond_the_limits_is_refused(database: TestDatabase) {
        let store = database.store().await;
        let bodies = ["\u{0}".to_owned(), "x".repeat(256 * 1024 + 1)];
        let wrong = [
            NewEffect::new("", "a", "b"),
            NewEffect::new("mail", "a\nb", "b"),
            NewEffect::new("mail", "a".repeat(1_001), "b"),
            NewEffect { key: Some(String::new()), ..NewEffect::new("mail", "a", "b") },
            NewEffect::new("mail", "a", bodies[0].clone()),
            NewEffect::new("mail", "a", bodies[1].clone()),
        ];
        let planner = Scripted::new(mailing().with_retry(RetryStrategy::None), move |events, context| {
            let wrong = wrong.clone();
            Box::pin(async move {
                for new in wrong {
                    let refused = context.because_of(&events[0]).plan_effect(new).unwrap_err();
                    assert!(matches!(refused, ContextError::InvalidEffect(_)), "{refused}");
                }
                let most = NewEffect::new("m".repeat(100), "d".repeat(1_000), "b".repeat(256 * 1024));
                context.because_of(&events[0]).plan_effect(most)?;
                Err::<(), BoxError>(context.because_of(&events[0]).plan_effect(NewEffect::new("", "", "")).unwrap_err().into())
            })
        });
        let engine = engine(&store, vec![Arc::new(planner)]);
        engine.set_up(&Criteria::all(), false).await.unwrap();
        ask(&store, 0, &["a"]).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        assert_eq!(status(&engine, "mailing").await, Status::Error);
        assert_eq!(ledger(&engine).await.len(), 0, "what a failed unit has planned is not there");
    }
}

/// Runs until nobody else has it: what is left of a process that was cut off may take a moment to go.
async fn until_run(engine: &Engine) {
    let head = engine.store().head().await.unwrap().position;
    while look(engine, "mailing").await.read_from() < head {
        engine.run(&Criteria::all(), None).await.unwrap();
    }
    until(engine, "mailing", |now| now.read_from() >= head).await;
}
