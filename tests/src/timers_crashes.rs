//! Timers when processes die and when several work at once: each fires exactly once, whatever happens.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use store::Timestamp;
use subscription_engine::{Criteria, Engine, EngineError, FaultPoint, Faults, Settings};
use testkit::{Alarm, Alarms, KillSwitch, Random, T0, TestDatabase, both};

use crate::engine::{Running, engine, until};
use crate::given::all_events;
use crate::timers::{after, ask, at, keys, pending, processor, rang, ringing};
use crate::timers_worker::until_rang;

const POINTS: [FaultPoint; 3] = [FaultPoint::BeforeCommit, FaultPoint::InsideCommit, FaultPoint::AfterCommit];

/// Another process on the same log.
async fn process(database: &TestDatabase, alarms: &Arc<Alarms>) -> Engine {
    engine(&database.store_with_manual_clock().await, vec![alarms.clone()])
}

both! {
    /// E-43: cut off at each step of its unit, a timer fires exactly once.
    async fn e43_cut_off_at_every_step(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let alarms = processor();
        let watching = ringing(&store, &alarms).await;
        for (number, point) in (1..).zip(POINTS) {
            let key = format!("k{number}");
            ask(&store, &[at(&key, number * 10)]).await;
            watching.run(&Criteria::all(), None).await.unwrap();
            store.clock().set(after(number * 10)).await.unwrap();
            let kill = KillSwitch::new("alarms", [point]);
            let dying = process(&database, &alarms).await.with_faults(kill.clone());
            let error = dying.fire_timers(&Criteria::all()).await.unwrap_err();
            assert!(matches!(error, EngineError::Injected(at) if at == point), "{error}");
            assert!(kill.is_spent());
            dying.store().close().await;
            let next = process(&database, &alarms).await;
            next.catch_up(&Criteria::all()).await.unwrap();
            let told = rang(&store).await;
            assert_eq!(told.iter().filter(|(rang, ..)| *rang == key).count(), 1, "{point:?}: {told:?}");
            assert_eq!(pending(&next).await, [""; 0]);
            next.store().close().await;
        }
        assert_eq!(alarms.count(&store).await, 3);
    }

    /// E-43, E-60: two workers, by real time: each timer fires once, none early, none is lost, whoever set it.
    async fn e43_two_workers(database: TestDatabase) {
        let store = database.store().await;
        let alarms = processor();
        let settings = Settings { unit_events: 7, ..Settings::default() };
        let first = ringing(&store, &alarms).await.with_settings(settings);
        let second = engine(&database.open().await, vec![alarms.clone()]).with_settings(settings);
        let workers = [Running::start(&first).await, Running::start(&second).await];
        let now = store.clock().now().await.unwrap();
        for part in 0..20_u64 {
            let alarm = |n: u64| Alarm::at(&format!("k{part}-{n}"), now.plus(Duration::from_millis(part * 10 + n * 7)));
            ask(&store, &(0..10).map(alarm).collect::<Vec<_>>()).await;
        }
        until_rang(&first, &alarms, 200).await;
        for worker in workers {
            worker.stop().await;
        }
        let mut times = BTreeMap::<String, usize>::new();
        for key in keys(&store).await {
            *times.entry(key).or_default() += 1;
        }
        assert_eq!(times.len(), 200);
        assert!(times.values().all(|times| *times == 1), "{times:?}");
        for event in all_events(&store).await.iter().filter(|event| event.event_type == Alarm::RANG) {
            let said: serde_json::Value = event.payload.to().unwrap();
            let due: Timestamp = said["due"].as_str().unwrap().parse().unwrap();
            assert!(event.recorded_at >= due, "{} at {}", said, event.recorded_at);
        }
    }

    /// E-43: a worker is killed where it stands, again and again; what it left due fires once.
    async fn e43_workers_that_are_killed(database: TestDatabase) {
        let store = database.store().await;
        let alarms = processor();
        let engine = ringing(&store, &alarms).await;
        for round in 0..5_i64 {
            let now = store.clock().now().await.unwrap();
            let alarm = |n: u64| Alarm::at(&format!("k{round}-{n}"), now.plus(Duration::from_millis(n)));
            ask(&store, &(0..20).map(alarm).collect::<Vec<_>>()).await;
            let worker = Running::start(&engine).await;
            let target = 1 + round * 24;
            until(&engine, "alarms", |now| now.position.is_some_and(|position| position.0 >= target)).await;
            worker.kill().await;
        }
        let worker = Running::start(&engine).await;
        until_rang(&engine, &alarms, 100).await;
        worker.stop().await;
        assert_eq!(alarms.count(&store).await, 100);
        assert_eq!(keys(&store).await.len(), 100);
    }

    /// E-43, E-70: any alarms, cancellations, steps of the clock, pauses and crashes: what fires, and in which order,
    /// is what a small model says.
    async fn e43_anything_at_any_time(database: TestDatabase) {
        let seed = Random::seed();
        let mut random = Random::from_seed(seed);
        let store = database.store_with_manual_clock().await;
        let alarms = processor();
        let watching = ringing(&store, &alarms).await;
        let unlucky = Arc::new(Unlucky(Mutex::new(Random::from_seed(seed.wrapping_add(1)))));
        let mut model = Model::default();
        let mut now = 0;
        let mut is_paused = false;
        for _ in 0..60 {
            let mut events = Vec::new();
            for _ in 0..random.below(6) {
                let key = format!("k{}", random.below(6));
                let mut instant = || after((now + random.below(40)).saturating_sub(10));
                let alarm = match instant().as_micros() % 3 {
                    0 => Alarm::cancelled(&key),
                    1 => Alarm { again: vec![instant(), instant()], ..Alarm::at(&key, instant()) },
                    _ => Alarm::at(&key, instant()),
                };
                events.push(alarm);
            }
            if !events.is_empty() {
                ask(&store, &events).await;
                model.asked.extend(events);
            }
            if random.below(3) > 0 {
                now += random.below(20);
                store.clock().set(after(now)).await.unwrap();
            }
            if random.below(6) == 0 {
                is_paused = !is_paused;
                if is_paused {
                    watching.pause(&Criteria::all(), "test").await.unwrap();
                } else {
                    watching.reactivate(&Criteria::all(), "test").await.unwrap();
                }
            }
            if random.below(4) == 0 {
                continue;
            }
            loop {
                let settings = Settings {
                    unit_events: 1 + usize::try_from(random.below(4)).unwrap(),
                    ..Settings::default()
                };
                let dying = process(&database, &alarms).await.with_faults(unlucky.clone()).with_settings(settings);
                let result = dying.catch_up(&Criteria::all()).await;
                dying.store().close().await;
                match result {
                    Ok(_) => break,
                    Err(EngineError::Injected(_)) => {}
                    Err(error) => panic!("HERALD_TEST_SEED={seed}: {error}"),
                }
            }
            if !is_paused {
                model.catch_up(after(now));
            }
            assert_eq!(keys(&store).await, model.rang, "HERALD_TEST_SEED={seed}");
        }
        if is_paused {
            watching.reactivate(&Criteria::all(), "test").await.unwrap();
        }
        watching.set_clock(after(now + 1_000), Duration::from_secs(60)).await.unwrap();
        model.catch_up(after(now));
        model.step_to(after(now + 1_000));
        assert_eq!(keys(&store).await, model.rang, "HERALD_TEST_SEED={seed}");
        assert_eq!(pending(&watching).await, [""; 0], "HERALD_TEST_SEED={seed}");
        assert_eq!(alarms.count(&store).await, i64::try_from(model.rang.len()).unwrap());
    }
}

/// What timers are meant to do, without a database.
#[derive(Default)]
struct Model {
    /// Not handled yet.
    asked: Vec<Alarm>,
    /// With a number that tells which was set later.
    set: BTreeMap<String, (u64, Alarm)>,
    number: u64,
    rang: Vec<String>,
}

impl Model {
    fn set(&mut self, alarm: Alarm) {
        self.number += 1;
        self.set.insert(alarm.key.clone(), (self.number, alarm));
    }

    /// All events first; then all that are due by turns.
    fn catch_up(&mut self, now: Timestamp) {
        for alarm in std::mem::take(&mut self.asked) {
            match alarm.due {
                None => drop(self.set.remove(&alarm.key)),
                Some(_) => self.set(alarm),
            }
        }
        loop {
            let mut due: Vec<_> =
                self.set.values().filter(|(_, alarm)| alarm.due.unwrap_or(T0) <= now).cloned().collect();
            due.sort_by_key(|(number, alarm)| (alarm.due, *number));
            if due.is_empty() {
                return;
            }
            for (_, mut alarm) in due {
                self.set.remove(&alarm.key);
                self.rang.push(alarm.key.clone());
                if !alarm.again.is_empty() {
                    alarm.due = Some(alarm.again.remove(0));
                    self.set(alarm);
                }
            }
        }
    }

    /// Stops at each instant at which one is due.
    fn step_to(&mut self, target: Timestamp) {
        while let Some(due) = self.set.values().filter_map(|(_, alarm)| alarm.due).min() {
            self.catch_up(due.min(target));
        }
    }
}

/// Cuts off one unit in so many.
struct Unlucky(Mutex<Random>);

impl Faults for Unlucky {
    fn strikes(&self, point: FaultPoint, _: &str) -> bool {
        POINTS.contains(&point) && self.0.lock().unwrap().below(12) == 0
    }
}
