//! Effects when processes die: wherever they are cut off, each effect arrives, and ends once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use store::{Store, Timestamp};
use subscription_engine::{
    Answer, Criteria, EffectState, EffectStatus, Engine, EngineError, FaultPoint, Faults, Hold, InDoubt,
    RetryStrategy, State, Terms,
};
use testkit::{KillSwitch, Planner, Random, Receiver, T0, TestDatabase, both};
use uuid::Uuid;

use crate::effects::{all_done, ask, ledger, mailer, mailing, posting, statuses, until_effects};
use crate::engine::{Running, engine, look};
use crate::given::all_events;

const PATIENCE: Duration = Duration::from_secs(30);
const POINTS: [FaultPoint; 5] = [
    FaultPoint::EffectBeforeStart,
    FaultPoint::EffectStarted,
    FaultPoint::EffectSent,
    FaultPoint::EffectBeforeRecord,
    FaultPoint::EffectRecorded,
];

async fn process(database: &TestDatabase, receiver: &Arc<Receiver>) -> Engine {
    posting(engine(&database.store_with_manual_clock().await, vec![Planner::new(mailing())]), receiver)
}

/// Claims last until they are moved into the past: for tests that live by real time.
async fn expire_claims(store: &Store) {
    let sql = "UPDATE herald_effects SET claimed_until = claimed_at WHERE state = 'sending'";
    store.database().execute(sql, ()).await.unwrap();
}

/// How often each effect ended, according to the log.
async fn endings(store: &Store) -> BTreeMap<String, usize> {
    let mut endings = BTreeMap::new();
    for event in all_events(store).await {
        if event.event_type == "Herald.Effects:EffectDone" {
            *endings.entry(event.stream.to_string()).or_default() += 1;
        }
    }
    endings
}

both! {
    /// E-50: cut off at every step: it arrives at least once, and the log says once that it did.
    async fn e50_cut_off_at_every_step(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let receiver = Arc::new(Receiver::new("mail"));
        let watching = mailer(&store, &receiver).await;
        for (number, point) in POINTS.into_iter().enumerate() {
            ask(&store, number, &["a"]).await;
            watching.run(&Criteria::all(), None).await.unwrap();
            let kill = KillSwitch::new("mailing", [point]);
            let dying = process(&database, &receiver).await.with_faults(kill.clone());
            let error = dying.deliver(&Criteria::all()).await.unwrap_err();
            assert!(matches!(error, EngineError::Injected(at) if at == point), "{error}");
            assert!(kill.is_spent());
            dying.store().close().await;

            let next = process(&database, &receiver).await;
            let now = next.clock().now().await.unwrap();
            let sent = || receiver.bodies().iter().filter(|body| **body == number.to_string()).count();
            next.deliver(&Criteria::all()).await.unwrap();
            match point {
                FaultPoint::EffectBeforeStart | FaultPoint::EffectRecorded => assert_eq!(sent(), 1),
                // Nobody else touches what is claimed.
                FaultPoint::EffectStarted => assert_eq!(sent(), 0),
                _ => assert_eq!(sent(), 1),
            }
            // 70 s until the claim has expired, and 30 s until the first retry.
            next.set_clock(now.plus(Duration::from_secs(69)), PATIENCE).await.unwrap();
            assert!(sent() <= 1);
            next.set_clock(now.plus(Duration::from_secs(100)), PATIENCE).await.unwrap();
            let arrived = if matches!(point, FaultPoint::EffectSent | FaultPoint::EffectBeforeRecord) { 2 } else { 1 };
            assert_eq!(sent(), arrived, "{point:?}");
            assert!(all_done(&ledger(&watching).await));
            next.store().close().await;
        }
        let endings = endings(&store).await;
        assert_eq!(endings.len(), POINTS.len());
        assert!(endings.values().all(|times| *times == 1), "{endings:?}");
    }

    /// E-50: in doubt after a crash, and its kind is not to be resent: it is held and explained.
    async fn e50_in_doubt_after_a_crash_is_held(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let terms = Terms { in_doubt: InDoubt::Hold, ..Terms::default() };
        let receiver = Arc::new(Receiver::new("mail").with_terms(terms));
        let engine = mailer(&store, &receiver).await;
        ask(&store, 0, &["a", "a"]).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        let kill = KillSwitch::new("mailing", [FaultPoint::EffectSent]);
        process(&database, &receiver).await.with_faults(kill).deliver(&Criteria::all()).await.unwrap_err();
        engine.set_clock(T0.plus(Duration::from_secs(70)), PATIENCE).await.unwrap();
        let effects = ledger(&engine).await;
        assert_eq!(effects[0].state, EffectState::Held { hold: Hold::InDoubt });
        assert!(effects[0].why.starts_with("attempt 1 began at 2026-01-01T00:00:00Z"), "{}", effects[0].why);
        assert_eq!(effects[1].state, EffectState::Done, "the next one for that destination goes on");
    }

    /// E-50: whether a claim has expired is what the database's clock says, in a worker that lives by real time.
    async fn e50_a_claim_expires_by_the_databases_clock(database: TestDatabase) {
        let store = database.store().await;
        let retry = RetryStrategy::ClockBased {
            base_delay: Duration::ZERO,
            delay_factor: 1.0,
            max_attempts: 3,
            max_delay: None,
        };
        let receiver = Arc::new(Receiver::new("mail").with_terms(Terms { retry, ..Terms::default() }));
        let engine = mailer(&store, &receiver).await;
        ask(&store, 0, &["a"]).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        let kill = KillSwitch::new("mailing", [FaultPoint::EffectStarted]);
        engine.clone().with_faults(kill).deliver(&Criteria::all()).await.unwrap_err();
        let record = ledger(&engine).await.remove(0);
        let EffectState::Sending { sending, .. } = record.state else { panic!("{record:?}") };
        assert_eq!(sending.until.since(sending.since), Duration::from_secs(70));
        engine.deliver(&Criteria::all()).await.unwrap();
        assert_eq!(statuses(&engine).await, [EffectStatus::Sending]);
        expire_claims(&store).await;
        let worker = Running::start(&engine).await;
        until_effects(&engine, all_done).await;
        worker.stop().await;
        let done = ledger(&engine).await.remove(0);
        assert_eq!((done.effect.attempt, done.failures), (2, 1), "a crash counts as a try");
    }

    /// E-50: an answer that comes after its claim was given up on: what is known then is not sent again.
    async fn e50_a_late_answer_is_still_an_answer(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail").held());
        let engine = mailer(&store, &receiver).await;
        ask(&store, 0, &["a"]).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        let slow = engine.clone();
        let slow = tokio::spawn(async move { slow.deliver(&Criteria::all()).await });
        receiver.has_received(1).await;
        expire_claims(&store).await;
        engine.deliver(&Criteria::all()).await.unwrap();
        assert_eq!(statuses(&engine).await, [EffectStatus::Pending], "to be resent in 30 s");
        receiver.let_go(1);
        slow.await.unwrap().unwrap();
        assert_eq!(statuses(&engine).await, [EffectStatus::Done]);
        assert_eq!(endings(&store).await.len(), 1);
    }

    /// E-50: a worker that is asked to stop waits for what is on its way and writes its answer down.
    async fn e50_a_stop_waits_for_the_answer(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail").held());
        let engine = mailer(&store, &receiver).await;
        let worker = Running::start(&engine).await;
        ask(&store, 0, &["a", "a"]).await;
        receiver.has_received(1).await;
        let stopped = worker.ask_to_stop().await;
        receiver.let_go(2);
        stopped.await.unwrap().unwrap();
        let mut statuses = statuses(&engine).await;
        statuses.sort();
        assert!(statuses.contains(&EffectStatus::Done) && !statuses.contains(&EffectStatus::Sending), "{statuses:?}");
    }

    /// E-50, E-51, E-70: anything at any time: cuts at random steps, receivers that answer anything, operators who
    /// pause, hold and release. In the end each effect has arrived, ended once, and never met itself.
    async fn e50_anything_at_any_time(database: TestDatabase) {
        let seed = Random::seed();
        let store = database.store_with_manual_clock().await;
        let answers = Mutex::new(Random::from_seed(seed));
        let terms = Terms {
            retry: RetryStrategy::ClockBased {
                base_delay: Duration::from_secs(7),
                delay_factor: 1.0,
                max_attempts: 1_000,
                max_delay: None,
            },
            ..Terms::default()
        };
        let receiver = Arc::new(Receiver::new("mail").with_terms(terms).answering(move |_| {
            let why = "chance".to_owned();
            match answers.lock().unwrap().below(12) {
                0 => Answer::Retry { why, after: None },
                1 => Answer::Retry { why, after: Some(Duration::from_secs(20)) },
                2 => Answer::Unknown { why },
                3 => Answer::Blocked { why },
                _ => Answer::Done { detail: why },
            }
        }));
        let watching = mailer(&store, &receiver).await;
        let mut random = Random::from_seed(seed.wrapping_add(1));
        let unlucky = Arc::new(Unlucky(Mutex::new(Random::from_seed(seed.wrapping_add(2)))));
        let mailing = Criteria::id("mailing");
        let mut asked = 0;
        for _ in 0..60 {
            if random.below(2) == 0 {
                let destinations = &["a", "b", "c"][..1 + usize::try_from(random.below(3)).unwrap()];
                ask(&store, asked, destinations).await;
                asked += destinations.len();
            }
            match random.below(8) {
                0 => drop(watching.pause(&mailing, "test").await.unwrap()),
                1 | 2 => drop(watching.reactivate(&mailing, "test").await.unwrap()),
                3 => {
                    for record in ledger(&watching).await.iter().filter(|_| random.below(3) == 0) {
                        watching.hold_effect(record.effect.id, "test").await.unwrap();
                    }
                }
                4 => release_all(&watching).await,
                _ => {}
            }
            let dying = process(&database, &receiver).await.with_faults(unlucky.clone());
            match dying.catch_up(&Criteria::all()).await {
                Ok(_) | Err(EngineError::Injected(_)) => {}
                Err(error) => panic!("{error}"),
            }
            dying.store().close().await;
            let now: Timestamp = watching.clock().now().await.unwrap();
            watching.clock().set(now.plus(Duration::from_secs(random.below(40)))).await.unwrap();
        }
        receiver.answer(|_| Answer::Done { detail: "in the end".to_owned() });
        for round in 0.. {
            assert!(round < 50, "HERALD_TEST_SEED={seed}: {:?}", ledger(&watching).await);
            release_all(&watching).await;
            if !matches!(look(&watching, "mailing").await.state, State::Active) {
                watching.reactivate(&mailing, "test").await.unwrap();
            }
            watching.catch_up(&Criteria::all()).await.unwrap();
            let now = watching.clock().now().await.unwrap();
            let effects = ledger(&watching).await;
            if effects.len() == asked && all_done(&effects) {
                break;
            }
            watching.set_clock(now.plus(Duration::from_secs(80)), PATIENCE).await.unwrap();
        }
        assert_eq!(receiver.clashes(), [""; 0], "HERALD_TEST_SEED={seed}");
        let endings = endings(&store).await;
        assert_eq!(endings.len(), asked, "HERALD_TEST_SEED={seed}");
        assert!(endings.values().all(|times| *times == 1), "HERALD_TEST_SEED={seed}: {endings:?}");
        let mut arrived: BTreeMap<Uuid, u32> = BTreeMap::new();
        for effect in receiver.received() {
            *arrived.entry(effect.id).or_default() += 1;
        }
        for record in ledger(&watching).await {
            let times = arrived.get(&record.effect.id).copied().unwrap_or(0);
            assert!((1..=record.effect.attempt).contains(&times), "HERALD_TEST_SEED={seed}: {record:?}");
        }
        let lanes: Option<(i64,)> =
            store.database().fetch_optional("SELECT COUNT(*) FROM herald_effect_lanes", ()).await.unwrap();
        assert_eq!(lanes, Some((0,)), "nothing is left behind");
    }
}

async fn release_all(engine: &Engine) {
    for record in ledger(engine).await {
        engine.release_effect(record.effect.id, "test").await.unwrap();
    }
}

/// Cuts off one step of effects in so many.
struct Unlucky(Mutex<Random>);

impl Faults for Unlucky {
    fn strikes(&self, point: FaultPoint, _: &str) -> bool {
        POINTS.contains(&point) && self.0.lock().unwrap().below(10) == 0
    }
}
