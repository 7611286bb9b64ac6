//! Random appends, conflicts, repetitions, misuse, rollbacks and callers that go away, against a model of ten lines
//! (S-04, S-05, S-06, S-24): both must say the same, and hold the same at the end.

use std::collections::{BTreeMap, BTreeSet};

use store::{
    Append, AppendError, Appended, ExpectedVersion, Json, MAX_PAYLOAD_BYTES, NewEvent, Position, Store,
    Version,
};
use testkit::{Random, both};
use uuid::Uuid;

use crate::given::{all_events, stream};

const STEPS: usize = 600;
const STREAMS: u64 = 5;

/// What an answer comes down to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    /// The last version.
    Appended(Option<i64>),
    Replayed(Option<i64>),
    WrongVersion(Option<i64>),
    IdReused,
    Invalid,
}

/// The ten lines: the ids of each stream, in appends.
#[derive(Clone, Debug, Default)]
struct Model(BTreeMap<String, Vec<Vec<NewEvent>>>);

impl Model {
    fn version(&self, stream: &str) -> Option<i64> {
        let events = self.0.get(stream)?.iter().map(Vec::len).sum::<usize>();
        Some(i64::try_from(events).unwrap() - 1)
    }

    fn append(&mut self, append: &Append) -> Answer {
        let name = append.stream.as_str();
        let is_too_large = |event: &NewEvent| event.payload.as_str().len() > MAX_PAYLOAD_BYTES;
        let ids: BTreeSet<Uuid> = append.events.iter().map(|event| event.id).collect();
        if append.events.iter().any(is_too_large) || ids.len() < append.events.len() {
            return Answer::Invalid;
        }
        if append.events.is_empty() {
            return Answer::Appended(None);
        }
        if self.0.values().flatten().flatten().any(|event| ids.contains(&event.id)) {
            return self.repeat(append);
        }
        let actual = self.version(name);
        let fits = match append.expected {
            ExpectedVersion::Any => true,
            ExpectedVersion::NoStream => actual.is_none(),
            ExpectedVersion::StreamExists => actual.is_some(),
            ExpectedVersion::Exactly(version) => actual == Some(version.0),
        };
        if !fits {
            return Answer::WrongVersion(actual);
        }
        self.0.entry(name.to_owned()).or_default().push(append.events.clone());
        Answer::Appended(self.version(name))
    }

    fn repeat(&self, append: &Append) -> Answer {
        let mut version = -1;
        for earlier in self.0.get(append.stream.as_str()).into_iter().flatten() {
            version += i64::try_from(earlier.len()).unwrap();
            let same = |(a, b): (&NewEvent, &NewEvent)| {
                a.id == b.id && a.event_type == b.event_type && a.payload == b.payload
            };
            if earlier.len() == append.events.len() && earlier.iter().zip(&append.events).all(same) {
                return Answer::Replayed(Some(version));
            }
        }
        Answer::IdReused
    }
}

fn answer(result: Result<Appended, AppendError>) -> Answer {
    let number = |version: Option<Version>| version.map(|version| version.0);
    match result {
        Ok(Appended { version, replayed: false, .. }) => Answer::Appended(number(version)),
        Ok(Appended { version, replayed: true, .. }) => Answer::Replayed(number(version)),
        Err(AppendError::WrongVersion { actual, .. }) => Answer::WrongVersion(number(actual)),
        Err(AppendError::IdReused { .. }) => Answer::IdReused,
        Err(AppendError::Invalid { .. }) => Answer::Invalid,
        Err(error) => panic!("{error}"),
    }
}

/// One run: what was appended so far, and dice.
struct Run {
    random: Random,
    model: Model,
    earlier: Vec<Append>,
}

impl Run {
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.random.below(end as u64)).unwrap()
    }

    fn event(&mut self) -> NewEvent {
        let number = self.random.below(1_000);
        let length = if self.below(40) == 0 { MAX_PAYLOAD_BYTES } else { self.below(20) };
        let payload = Json::parse(format!("{{ \"n\" : {number},\n\"x\":\"{}\" }}", "é".repeat(length)));
        NewEvent::new(["Acme.Test:A", "Acme.Test:B"][self.below(2)], payload.unwrap())
    }

    /// Some append: mostly a new one, sometimes an earlier one, as it was or bent.
    fn append(&mut self) -> Append {
        if !self.earlier.is_empty() && self.below(3) == 0 {
            let which = self.below(self.earlier.len());
            let mut again = self.earlier[which].clone();
            match self.below(6) {
                0 => again.stream = stream(&format!("s-{}", self.random.below(STREAMS))),
                1 => drop(again.events.pop()),
                2 => again.events.push(self.event()),
                3 => again.events.reverse(),
                4 => again.events.iter_mut().for_each(|event| event.payload = Json::empty_object()),
                _ => {}
            }
            return again;
        }
        let name = format!("s-{}", self.random.below(STREAMS));
        let actual = self.model.version(&name);
        let expected = match self.below(6) {
            0 => ExpectedVersion::NoStream,
            1 => ExpectedVersion::StreamExists,
            2 => ExpectedVersion::Exactly(Version(i64::try_from(self.below(6)).unwrap())),
            3 => ExpectedVersion::Any,
            _ => {
                actual.map_or(ExpectedVersion::NoStream, |version| ExpectedVersion::Exactly(Version(version)))
            }
        };
        let mut events: Vec<NewEvent> = (0..self.below(5)).map(|_| self.event()).collect();
        if events.len() > 1 && self.below(30) == 0 {
            events[1].id = events[0].id;
        }
        Append { stream: stream(&name), expected, events }
    }

    async fn alone(&mut self, store: &Store) {
        let append = self.append();
        let expected = self.model.append(&append);
        let said = store.append(&append.stream, append.expected, append.events.clone()).await;
        assert_eq!(answer(said), expected, "{append:?}");
        self.earlier.push(append);
    }

    /// A caller that goes away in the middle and asks again: what it asked for happens once, or is refused as ever.
    async fn interrupted(&mut self, store: &Store) {
        let append = self.append();
        let ask = || store.append(&append.stream, append.expected, append.events.clone());
        for _ in 0..=self.below(3) {
            let mut asking = std::pin::pin!(ask());
            for _ in 0..self.below(6) {
                let step =
                    std::future::poll_fn(|context| std::task::Poll::Ready(asking.as_mut().poll(context)));
                if step.await.is_ready() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
        let expected = match self.model.append(&append) {
            Answer::Appended(version) if version.is_some() => {
                vec![Answer::Appended(version), Answer::Replayed(version)]
            }
            answer => vec![answer],
        };
        let said = answer(ask().await);
        assert!(expected.contains(&said), "{said:?} instead of {expected:?}: {append:?}");
        self.earlier.push(append);
    }

    /// Several streams in one transaction, which is committed, rolled back or dropped.
    async fn together(&mut self, store: &Store) {
        let count = 1 + self.below(3);
        let mut appends: Vec<Append> = Vec::new();
        for _ in 0..count {
            let append = self.append();
            let ids: BTreeSet<Uuid> = append.events.iter().map(|event| event.id).collect();
            let is_separate = appends.iter().all(|other| {
                other.stream != append.stream && other.events.iter().all(|event| !ids.contains(&event.id))
            });
            if is_separate {
                appends.push(append);
            }
        }
        let before = self.model.clone();
        let expected: Vec<Answer> = appends.iter().map(|append| self.model.append(append)).collect();
        let is_fine = |answer: &Answer| matches!(answer, Answer::Appended(_) | Answer::Replayed(_));
        let mut tx = store.begin().await.unwrap();
        let said = store.append_all(&mut tx, appends.clone()).await;
        match said {
            Ok(said) => {
                let said: Vec<Answer> = said.into_iter().map(|appended| answer(Ok(appended))).collect();
                assert_eq!(said, expected, "{appends:?}");
            }
            Err(error) => {
                let said = answer(Err(error));
                assert!(!is_fine(&said) && expected.contains(&said), "{said:?} of {expected:?}: {appends:?}");
            }
        }
        let all_fine = expected.iter().all(is_fine);
        match self.below(4) {
            0 => tx.rollback().await,
            1 => drop(tx),
            _ if all_fine => {
                tx.commit().await.unwrap();
                self.earlier.extend(appends);
                return;
            }
            _ if expected.contains(&Answer::Invalid) => tx.rollback().await,
            _ => drop(tx.commit().await.unwrap_err()),
        }
        self.model = before;
    }

    /// The log holds what the model holds: per stream in the order of versions, positions growing with them.
    async fn compare(&self, store: &Store) {
        let mut held: BTreeMap<String, Vec<(i64, Uuid, String, Json)>> = BTreeMap::new();
        let mut last = Position::START;
        for event in all_events(store).await {
            assert!(event.position > last);
            last = event.position;
            let of_stream = held.entry(event.stream.to_string()).or_default();
            of_stream.push((event.version.0, event.id, event.event_type, event.payload));
        }
        let model = self.model.0.iter().map(|(name, appends)| {
            let events =
                appends.iter().flatten().zip(0..).map(|(event, version)| {
                    (version, event.id, event.event_type.clone(), event.payload.clone())
                });
            (name.clone(), events.collect())
        });
        assert_eq!(held, model.collect());
    }
}

both! {
    async fn s04_s05_s06_random_appends_agree_with_the_model(database: TestDatabase) {
        let mut store = database.store().await;
        let mut run = Run { random: Random::new(), model: Model::default(), earlier: Vec::new() };
        for step in 0..STEPS {
            match run.below(10) {
                0..5 => run.alone(&store).await,
                5..7 => run.interrupted(&store).await,
                7..9 => run.together(&store).await,
                _ if run.below(20) == 0 => {
                    store.close().await;
                    store = database.store().await;
                }
                _ => {}
            }
            if step % 100 == 0 {
                run.compare(&store).await;
            }
        }
        run.compare(&store).await;
        assert!(run.model.0.values().flatten().count() > STEPS / 10, "much of it was fine");
    }
}
