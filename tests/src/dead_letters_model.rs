//! Dead letters when things go wrong at every moment: cut off, by two operators at once, and against a model.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use store::{Position, Store};
use subscription_engine::{
    Criteria, Definition, Engine, EngineError, FaultPoint, Faults, LetterFilter, Outcome, ParkKey, Poison,
    Reason, Settings, Subscriber,
};
use testkit::{KillSwitch, Random, TestDatabase, both};

use crate::dead_letters::{Bad, handled, happened, letters, parking, picky};
use crate::engine::{Running, engine, look, until};
use crate::given::all_events;

/// Without caps, so that the model has none.
fn uncapped() -> Definition {
    parking().with_poison(Poison::Park { key: ParkKey::Stream, cap_count: u64::MAX, cap_share: 1.0 })
}

/// Cuts off one commit in so many.
struct Unlucky {
    random: Mutex<Random>,
    one_in: u64,
}

impl Faults for Unlucky {
    fn strikes(&self, _: FaultPoint, _: &str) -> bool {
        self.random.lock().unwrap().below(self.one_in) == 0
    }
}

/// What should be: for each stream the letters in order, and all that was handled, in order.
#[derive(Debug, Default)]
struct Model {
    parked: BTreeMap<String, Vec<i64>>,
    handled: BTreeMap<String, Vec<i64>>,
    given_up: BTreeSet<i64>,
    /// The events that it has not come to yet.
    coming: Vec<(i64, String)>,
}

impl Model {
    fn catch_up(&mut self, bad: &Bad) {
        for (position, stream) in std::mem::take(&mut self.coming) {
            let parked = self.parked.entry(stream.clone()).or_default();
            if !parked.is_empty() || bad.contains(position) {
                parked.push(position);
            } else {
                self.handled.entry(stream).or_default().push(position);
            }
        }
    }

    fn retry(&mut self, stream: &str, bad: &Bad) {
        let parked = self.parked.entry(stream.to_owned()).or_default();
        while let Some(position) = parked.first().copied().filter(|position| !bad.contains(*position)) {
            parked.remove(0);
            self.handled.entry(stream.to_owned()).or_default().push(position);
        }
    }

    fn retry_one(&mut self, position: i64, bad: &Bad) {
        for (stream, parked) in &mut self.parked {
            if parked.first() == Some(&position) && !bad.contains(position) {
                parked.remove(0);
                self.handled.entry(stream.clone()).or_default().push(position);
            }
        }
    }

    fn discard(&mut self, position: i64) {
        self.parked.values_mut().for_each(|parked| parked.retain(|letter| *letter != position));
        self.given_up.insert(position);
    }

    fn all_parked(&self) -> Vec<i64> {
        let all: BTreeSet<i64> = self.parked.values().flatten().copied().collect();
        all.into_iter().collect()
    }

    async fn assert_holds(&self, engine: &Engine) {
        let store = engine.store();
        let streams: BTreeMap<i64, String> = all_events(store)
            .await
            .into_iter()
            .map(|event| (event.position.0, event.stream.to_string()))
            .collect();
        let mut by_stream = BTreeMap::<String, Vec<i64>>::new();
        for position in handled(store).await {
            by_stream.entry(streams[&position].clone()).or_default().push(position);
        }
        assert_eq!(by_stream, self.handled, "handled once, in the order of each stream");
        let found = letters(engine).await;
        let positions: Vec<i64> = found.iter().map(|letter| letter.event.position.0).collect();
        assert_eq!(positions, self.all_parked());
        let open = look(engine, "picky").await.letters.open;
        assert_eq!(open, u64::try_from(found.len()).unwrap(), "the row counts its letters");
        for letter in &found {
            let is_oldest = self.parked[&letter.key].first() == Some(&letter.event.position.0);
            assert!(is_oldest || matches!(letter.reason, Reason::Behind { .. }), "{letter:?}");
        }
    }
}

/// Does something again and again, as new processes would, until it is not cut off.
async fn despite_cuts<T, F: Future<Output = Result<T, EngineError>>>(
    database: &TestDatabase,
    subscribers: &[Arc<dyn Subscriber>],
    unlucky: &Arc<Unlucky>,
    act: impl Fn(Engine) -> F,
    is_busy: impl Fn(&T) -> bool,
) -> T {
    loop {
        let settings = Settings { unit_events: 4, ..Settings::default() };
        let process = engine(&database.store().await, subscribers.to_vec())
            .with_settings(settings)
            .with_faults(unlucky.clone());
        let result = act(process.clone()).await;
        process.store().close().await;
        match result {
            // It met what is left of the one before.
            Ok(answer) if is_busy(&answer) => {}
            Ok(answer) => return answer,
            Err(EngineError::Injected(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn has_busy(report: &[(String, Outcome)]) -> bool {
    report.iter().any(|(_, outcome)| matches!(outcome, Outcome::Busy | Outcome::Waiting { .. }))
}

fn only_answers(store_events: usize, store: &Store) -> impl Future<Output = usize> {
    let store = store.clone();
    async move {
        let events = all_events(&store).await;
        assert!(events.len() >= store_events);
        let causes: Vec<_> = events.iter().filter_map(|event| event.causation_id).collect();
        assert_eq!(causes.iter().collect::<BTreeSet<_>>().len(), causes.len(), "nothing is answered twice");
        causes.len()
    }
}

both! {
    /// E-32, E-33: random events, failures, mendings, retries, discards, and cuts at every commit, against a model.
    async fn e32_e33_order_per_key_holds_whatever_happens(database: TestDatabase) {
        let store = database.store().await;
        let mut random = Random::new();
        let unlucky = Arc::new(Unlucky { random: Mutex::new(Random::from_seed(random.below(u64::MAX))), one_in: 15 });
        let bad = Bad::default();
        let subscribers: Vec<Arc<dyn Subscriber>> = vec![picky(uncapped(), &bad)];
        let plain = engine(&store, subscribers.clone());
        plain.set_up(&Criteria::all(), true).await.unwrap();
        let mut model = Model::default();
        for _ in 0..60 {
            match random.below(6) {
                0 | 1 => for _ in 0..=random.below(7) {
                    let stream = format!("s-{}", random.below(4));
                    happened(&store, &stream).await;
                    let position = store.head().await.unwrap().position.0;
                    if random.below(4) == 0 {
                        bad.add(position);
                    }
                    model.coming.push((position, stream));
                }
                2 => {
                    let run = async |engine: Engine| engine.run(&Criteria::all(), None).await;
                    despite_cuts(&database, &subscribers, &unlucky, run, |report| has_busy(report)).await;
                    model.catch_up(&bad);
                }
                3 => {
                    let stream = format!("s-{}", random.below(4));
                    if let Some(oldest) = model.parked.get(&stream).and_then(|parked| parked.first()) && random.below(3) > 0 {
                        bad.mend(*oldest);
                    }
                    let key = LetterFilter::of_key(&stream);
                    let retry = async |engine: Engine| engine.retry_dead_letters("picky", &key, "again").await;
                    despite_cuts(&database, &subscribers, &unlucky, retry, |report| report.stopped.is_some()).await;
                    model.retry(&stream, &bad);
                }
                4 => {
                    let parked = model.all_parked();
                    let Some(position) = parked.get(usize::try_from(random.below(9)).unwrap()).copied() else { continue };
                    let one = LetterFilter::at(Position(position));
                    let retry = async |engine: Engine| engine.retry_dead_letters("picky", &one, "again").await;
                    let is_busy = |report: &subscription_engine::LetterReport| report.stopped == Some(Outcome::Busy);
                    despite_cuts(&database, &subscribers, &unlucky, retry, is_busy).await;
                    model.retry_one(position, &bad);
                }
                _ => {
                    let parked = model.all_parked();
                    let Some(position) = parked.get(usize::try_from(random.below(20)).unwrap()).copied() else { continue };
                    let one = LetterFilter::at(Position(position));
                    let discard = async |engine: Engine| engine.discard_dead_letters("picky", &one, "out").await;
                    despite_cuts(&database, &subscribers, &unlucky, discard, |report| report.stopped.is_some()).await;
                    model.discard(position);
                }
            }
            model.assert_holds(&plain).await;
        }
        // In the end everything is mended, and every event is accounted for.
        plain.run(&Criteria::all(), None).await.unwrap();
        model.catch_up(&bad);
        for position in model.all_parked() {
            bad.mend(position);
        }
        plain.retry_dead_letters("picky", &LetterFilter::default(), "all").await.unwrap();
        for number in 0..4 {
            model.retry(&format!("s-{number}"), &bad);
        }
        model.assert_holds(&plain).await;
        let done: usize = model.handled.values().map(Vec::len).sum();
        let history = plain.history("picky", 100_000).await.unwrap();
        let discarded: BTreeSet<_> = history.iter().filter(|line| line.why.starts_with("discarded")).map(|line| &line.why).collect();
        assert_eq!(discarded.len(), model.given_up.len());
        assert_eq!(only_answers(done + model.given_up.len(), &store).await, done);
    }

    /// E-32, E-33, E-70: cut off before, inside and after the commit that parks, and the one that handles a letter.
    async fn e32_e33_cut_off_while_parking_and_while_retrying(database: TestDatabase) {
        let store = database.store().await;
        let bad = Bad::at([1]);
        let subscribers: Vec<Arc<dyn Subscriber>> = vec![picky(uncapped(), &bad)];
        let program = async || engine(&database.store().await, subscribers.clone());
        happened(&store, "a-1 a-1").await;
        for point in [FaultPoint::BeforeCommit, FaultPoint::InsideCommit, FaultPoint::AfterCommit] {
            bad.add(1);
            program().await.replay("picky", "anew", |_, _| {}).await.unwrap();
            program().await.remove(&Criteria::all(), "anew").await.unwrap();
            program().await.set_up(&Criteria::all(), true).await.unwrap();
            let kill = KillSwitch::new("picky", [point]);
            let error = program().await.with_faults(kill.clone()).run(&Criteria::all(), None).await.unwrap_err();
            assert!(matches!(error, EngineError::Injected(at) if at == point) && kill.is_spent(), "{error}");
            let next = program().await;
            while has_busy(&next.run(&Criteria::all(), None).await.unwrap()) {}
            let found = letters(&next).await;
            assert_eq!((found.len(), look(&next, "picky").await.letters.open), (2, 2), "{point:?}");
            assert!(matches!(found[0].reason, Reason::Failed { attempts: 1, .. }), "{found:?}");

            // The failure that is noted is cut off, and then the success.
            for mended in [false, true] {
                if mended {
                    bad.mend(1);
                }
                let kill = KillSwitch::new("picky", [point]);
                let cut = program().await.with_faults(kill.clone());
                let error = cut.retry_dead_letters("picky", &LetterFilter::default(), "x").await.unwrap_err();
                assert!(matches!(error, EngineError::Injected(_)) && kill.is_spent(), "{error}");
            }
            let next = program().await;
            while next.retry_dead_letters("picky", &LetterFilter::default(), "x").await.unwrap().stopped.is_some() {}
            assert_eq!((letters(&next).await, look(&next, "picky").await.letters.open), (vec![], 0), "{point:?}");
            assert_eq!(handled(&store).await, [1, 2]);
        }
        assert_eq!(only_answers(4, &store).await, 2);
    }

    /// E-33: two operators retry everything while a worker runs and events keep coming: each event is handled once, in
    /// the order of its stream, and every key flows in the end.
    async fn e33_two_operators_and_a_worker_at_once(database: TestDatabase) {
        let store = database.store().await;
        let bad = Bad::default();
        let subscribers: Vec<Arc<dyn Subscriber>> = vec![picky(uncapped(), &bad)];
        let streams = "s-0 s-1 s-2 s-3 s-4";
        for round in 0..4 {
            happened(&store, streams).await;
            if round == 0 {
                (1..=5).for_each(|position| bad.add(position));
            }
        }
        let settings = Settings { unit_events: 3, ..Settings::default() };
        let program = async || engine(&database.store().await, subscribers.clone()).with_settings(settings);
        let watching = program().await;
        watching.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(letters(&watching).await.len(), 20);
        let worker = Running::start(&program().await).await;
        (1..=5).for_each(|position| bad.mend(position));
        let mut operators = Vec::new();
        for _ in 0..2 {
            let operator = program().await;
            operators.push(tokio::spawn(async move {
                // Until there is nothing left, however often the other one or the worker is in the way.
                while look(&operator, "picky").await.letters.open > 0 {
                    let report = operator.retry_dead_letters("picky", &LetterFilter::default(), "now").await.unwrap();
                    assert_eq!(report.failed, 0, "{report:?}");
                }
            }));
        }
        for _ in 0..6 {
            happened(&store, streams).await;
        }
        for operator in operators {
            operator.await.unwrap();
        }
        let wanted: Vec<_> = all_events(&store).await.into_iter().filter(|event| event.event_type == "Happened").collect();
        let last = wanted.last().unwrap().position;
        until(&watching, "picky", |now| now.read_from() >= last).await;
        worker.stop().await;
        watching.retry_dead_letters("picky", &LetterFilter::default(), "the rest").await.unwrap();
        assert_eq!(letters(&watching).await, []);

        let mut expected = BTreeMap::<String, Vec<i64>>::new();
        for event in &wanted {
            expected.entry(event.stream.to_string()).or_default().push(event.position.0);
        }
        let streams: BTreeMap<i64, String> = wanted.iter().map(|event| (event.position.0, event.stream.to_string())).collect();
        let mut found = BTreeMap::<String, Vec<i64>>::new();
        for position in handled(&store).await {
            found.entry(streams[&position].clone()).or_default().push(position);
        }
        assert_eq!(found, expected);
        assert_eq!(only_answers(50, &store).await, 50);
    }
}
