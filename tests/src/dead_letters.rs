//! What becomes of an event that cannot be handled, and of those behind it, in the words of an operator.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use store::{ExpectedVersion, Json, Position, Sql, Store, TableName};
use subscription_engine::{
    BoxError, Context, Criteria, DeadLetter, Definition, Engine, LetterFilter, LetterReport, Outcome,
    ParkKey, Poison, Reason, RetryStrategy, RunMode, State, Status,
};
use testkit::{Scripted, T0, both, position};

use crate::engine::{append_typed, engine, look, only, status};
use crate::engine_failure::failure_of;

/// Positions that cannot be handled, until a test mends them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bad(Arc<Mutex<BTreeSet<i64>>>);

impl Bad {
    pub(crate) fn at(positions: impl IntoIterator<Item = i64>) -> Self {
        Self(Arc::new(Mutex::new(positions.into_iter().collect())))
    }

    pub(crate) fn mend(&self, position: i64) {
        self.0.lock().unwrap().remove(&position);
    }

    pub(crate) fn add(&self, position: i64) {
        self.0.lock().unwrap().insert(position);
    }

    pub(crate) fn contains(&self, position: i64) -> bool {
        self.0.lock().unwrap().contains(&position)
    }
}

fn written() -> TableName {
    TableName::new("written").unwrap()
}

/// Writes down what it handles, in the order in which it does, answers each with an event, and fails at what is bad
/// after it has done all of that.
pub(crate) fn picky(definition: Definition, bad: &Bad) -> Arc<Scripted> {
    let bad = bad.clone();
    let definition = definition.on(["Happened"]).with_table("written", "written");
    let handle = move |events: &[store::Event], bad: &Bad| {
        events.iter().map(|event| event.position.0).find(|position| bad.contains(*position))
    };
    Arc::new(
        Scripted::new(definition, move |events, context| {
            let failing = handle(events, &bad);
            Box::pin(async move {
                write(events, context).await?;
                failing.map_or(Ok(()), |position| Err(format!("cannot digest position {position}").into()))
            })
        })
        .with_setup(|context| {
            Box::pin(async move {
                let sql = "CREATE TABLE {t} (number BIGINT PRIMARY KEY, position BIGINT NOT NULL UNIQUE)";
                context.execute("written", sql, ()).await?;
                Ok(())
            })
        }),
    )
}

async fn write(events: &[store::Event], context: &mut Context<'_>) -> Result<(), BoxError> {
    for event in events {
        let sql = "INSERT INTO {t} (number, position) SELECT COALESCE(MAX(number), 0) + 1, $1 FROM {t}";
        context.execute("written", sql, (event.position,)).await?;
        let answers = crate::given::stream("answers-1");
        context.because_of(event).append(&answers, ExpectedVersion::Any, "Answered", Json::empty_object())?;
    }
    Ok(())
}

/// What was handled, in the order in which it was.
pub(crate) async fn handled(store: &Store) -> Vec<i64> {
    let sql = Sql::named("SELECT position FROM {t} ORDER BY number", &written());
    let rows: Vec<(i64,)> = store.database().fetch_all(sql, ()).await.unwrap();
    rows.into_iter().map(|row| row.0).collect()
}

/// One event in each of these streams, in this order.
pub(crate) async fn happened(store: &Store, streams: &str) {
    for stream in streams.split(' ') {
        append_typed(store, stream, &["Happened"]).await;
    }
}

pub(crate) async fn letters(engine: &Engine) -> Vec<DeadLetter> {
    engine.dead_letters(Some("picky"), &LetterFilter::default(), None, 10_000).await.unwrap()
}

fn positions_of(letters: &[DeadLetter]) -> Vec<i64> {
    letters.iter().map(|letter| letter.event.position.0).collect()
}

/// A projector that gives up at once and parks.
pub(crate) fn parking() -> Definition {
    Definition::projector("picky").with_retry(RetryStrategy::None).with_poison(Poison::park())
}

async fn retry(engine: &Engine, filter: LetterFilter) -> LetterReport {
    engine.retry_dead_letters("picky", &filter, "mended").await.unwrap()
}

fn done(count: u64) -> LetterReport {
    LetterReport { done: count, ..LetterReport::default() }
}

#[track_caller]
fn assert_refused(outcome: Option<Outcome>, why: &str) {
    let Some(Outcome::Refused { why: said }) = outcome else { panic!("{outcome:?}") };
    assert!(said.contains(why), "{said}");
}

both! {
    /// PL-039, E-32: it stays Active past the event, without an error; the event is a dead letter and is named.
    async fn pl_039_e32_what_cannot_be_handled_is_set_aside(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let engine = engine(&store, vec![picky(parking(), &Bad::at([1]))]);
        happened(&store, "a-1").await;
        engine.set_up(&Criteria::all(), true).await.unwrap();
        let outcome = only(engine.run(&Criteria::all(), None).await.unwrap());
        let Outcome::Parked { events: 0, parked, at_head: true } = outcome else { panic!("{outcome:?}") };
        assert_eq!((parked.letters, parked.first.position), (1, Position(1)));
        assert_eq!(parked.why, "cannot digest position 1");

        let now = look(&engine, "picky").await;
        assert_eq!((now.state.clone(), position(&now), now.attempt), (State::Active, 1, 0));
        assert_eq!((now.failing_position, now.letters.open), (None, 1));
        let letter = letters(&engine).await.remove(0);
        assert_eq!((letter.subscription.as_str(), letter.key.as_str()), ("picky", "a-1"));
        assert_eq!((letter.event.event_type.as_str(), letter.event.stream.as_str()), ("Happened", "a-1"));
        assert_eq!(engine.event_of(&letter).await.unwrap()[0].id, letter.event.id);
        assert_eq!(letter.parked_at, T0);
        let error = vec!["cannot digest position 1".to_owned()];
        assert_eq!(letter.reason, Reason::Failed { error, attempts: 1, first_failed_at: T0, last_failed_at: T0 });
        let last = engine.history("picky", 1).await.unwrap().remove(0);
        assert_eq!(last.why, "position 1 is a dead letter: cannot digest position 1");
        assert_eq!(handled(&store).await, [0_i64; 0], "what it wrote is undone");
    }

    /// E-32: later events of the same stream follow it unseen, those of others are handled, wherever they stand in a
    /// page.
    async fn e32_later_events_of_the_key_stand_behind_it(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![picky(parking(), &Bad::at([2, 6]))]);
        happened(&store, "a-1 b-1 a-1 b-1 b-1 c-1 a-1 c-1 d-1").await;
        let outcome = only(engine.catch_up(&Criteria::all()).await.unwrap());
        let Outcome::Parked { events: 4, parked, at_head: true } = outcome else { panic!("{outcome:?}") };
        assert_eq!((parked.letters, parked.first.position), (5, Position(2)));
        assert_eq!(handled(&store).await, [1, 3, 7, 9]);
        let found = letters(&engine).await;
        assert_eq!(positions_of(&found), [2, 4, 5, 6, 8]);
        let behind = |at: usize| found[at].reason.clone();
        assert_eq!(behind(1), Reason::Behind { position: Position(2) });
        assert_eq!(behind(4), Reason::Behind { position: Position(6) });
        let now = look(&engine, "picky").await;
        assert_eq!((now.state.status(), now.letters.open), (Status::Active, 5));
        // The answers are behind it as well, though it does not want them.
        assert_eq!(now.position, Some(store.head().await.unwrap().position));
    }

    /// E-32: a limit counts what is set aside as well.
    async fn e32_a_limit_counts_what_is_set_aside(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![picky(parking(), &Bad::at([1]))]);
        happened(&store, "a-1 a-1 b-1 a-1").await;
        engine.set_up(&Criteria::all(), false).await.unwrap();
        let outcome = only(engine.boot(&Criteria::all(), Some(3)).await.unwrap());
        let Outcome::Parked { events: 1, parked, at_head: false } = outcome else { panic!("{outcome:?}") };
        assert_eq!(parked.letters, 2);
        assert_eq!(position(&look(&engine, "picky").await), 3);
    }

    /// E-32: only when all attempts are used up; the letter knows how many there were, and since when.
    async fn e32_attempts_come_first(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let retry = RetryStrategy::ClockBased {
            base_delay: Duration::from_secs(5), delay_factor: 2.0, max_attempts: 2, max_delay: None,
        };
        let engine = engine(&store, vec![picky(parking().with_retry(retry), &Bad::at([2]))]);
        happened(&store, "a-1 b-1 a-1 b-1").await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        engine.set_clock(T0.plus(Duration::from_secs(5)), Duration::from_secs(30)).await.unwrap();
        assert_eq!(status(&engine, "picky").await, Status::Error);
        assert_eq!((handled(&store).await, letters(&engine).await), (vec![1], vec![]));
        engine.set_clock(T0.plus(Duration::from_secs(15)), Duration::from_secs(30)).await.unwrap();
        assert_eq!(status(&engine, "picky").await, Status::Active);
        assert_eq!(handled(&store).await, [1, 3]);
        let found = letters(&engine).await;
        assert_eq!(positions_of(&found), [2, 4]);
        let Reason::Failed { attempts, first_failed_at, last_failed_at, .. } = &found[0].reason else {
            panic!("{found:?}");
        };
        assert_eq!((*attempts, *first_failed_at), (3, T0));
        assert_eq!(*last_failed_at, T0.plus(Duration::from_secs(15)));
    }

    /// E-32: with as many letters as the policy allows it stops, before the event that would be one more, and goes on
    /// when there is room again.
    async fn e32_a_full_count_stops_it(database: TestDatabase) {
        let store = database.store().await;
        let poison = Poison::Park { key: ParkKey::Stream, cap_count: 2, cap_share: 1.0 };
        let bad = Bad::at([1, 4]);
        let engine = engine(&store, vec![picky(parking().with_poison(poison), &bad)]);
        happened(&store, "a-1 a-1 b-1 c-1 a-1 b-1").await;
        engine.set_up(&Criteria::all(), false).await.unwrap();
        let outcome = only(engine.boot(&Criteria::all(), None).await.unwrap());
        assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
        let failure = failure_of(&engine, "picky").await;
        assert_eq!(failure.event.unwrap().position, Position(4));
        let cap = "it failed and could not be set aside: 2 open dead letters are the most that its policy allows";
        assert_eq!(failure.chain, [cap, "cannot digest position 4"]);
        assert_eq!((handled(&store).await, positions_of(&letters(&engine).await)), (vec![3], vec![1, 2]));

        bad.mend(4);
        engine.reactivate(&Criteria::all(), "mended").await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        let failure = failure_of(&engine, "picky").await;
        assert_eq!(failure.event.as_ref().unwrap().position, Position(5));
        assert!(failure.message().starts_with("it stands behind the dead letter at position 1 (key \"a-1\")"), "{failure:?}");
        assert_eq!(handled(&store).await, [3, 4]);

        bad.mend(1);
        assert_eq!(retry(&engine, LetterFilter::of_key("a-1")).await, done(2));
        engine.reactivate(&Criteria::all(), "room again").await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(handled(&store).await, [3, 4, 1, 2, 5, 6]);
        assert_eq!(look(&engine, "picky").await.letters, subscription_engine::Letters::default());
    }

    /// E-32: a broken handler does not drain the log into the letters.
    async fn e32_a_large_share_stops_it(database: TestDatabase) {
        let store = database.store().await;
        let bad = Bad::at(1..=1_000);
        let poison = Poison::Park { key: ParkKey::Stream, cap_count: 10_000, cap_share: 0.2 };
        let engine = engine(&store, vec![picky(parking().with_poison(poison), &bad)]);
        for number in 0..30 {
            happened(&store, &format!("s-{number}")).await;
        }
        engine.set_up(&Criteria::all(), false).await.unwrap();
        let outcome = only(engine.boot(&Criteria::all(), None).await.unwrap());
        assert!(matches!(outcome, Outcome::Failed { .. }), "{outcome:?}");
        let failure = failure_of(&engine, "picky").await;
        assert_eq!(failure.event.as_ref().unwrap().position, Position(21));
        assert!(failure.message().contains("more than 20 % of its recent events"), "{failure:?}");
        assert_eq!(letters(&engine).await.len(), 20);
    }

    /// E-32: by another key than the stream; one that panics for an event does no harm.
    async fn e32_a_key_of_ones_own(database: TestDatabase) {
        let store = database.store().await;
        let category = |event: &store::Event| {
            assert!(event.position.0 != 4, "cannot say");
            event.stream.category().to_owned()
        };
        let definition = parking().with_poison(Poison::park_by(category));
        let engine = engine(&store, vec![picky(definition, &Bad::at([1]))]);
        happened(&store, "a-1 a-2 b-1 a-4 a-5").await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(handled(&store).await, [3, 4]);
        let found = letters(&engine).await;
        assert_eq!(positions_of(&found), [1, 2, 5]);
        assert!(found.iter().all(|letter| letter.key == "a"), "{found:?}");
    }

    /// E-32: who takes the policy away while there are letters is stopped where order would be broken.
    async fn e32_stop_in_place_of_park_keeps_the_order(database: TestDatabase) {
        let store = database.store().await;
        let bad = Bad::at([1]);
        let before = engine(&store, vec![picky(parking(), &bad)]);
        happened(&store, "a-1 b-1").await;
        before.catch_up(&Criteria::all()).await.unwrap();
        let after = engine(&store, vec![picky(parking().with_poison(Poison::Stop), &bad)]);
        happened(&store, "b-1 a-1 b-1").await;
        after.catch_up(&Criteria::all()).await.unwrap();
        let failure = failure_of(&after, "picky").await;
        assert!(failure.message().contains("its policy is to stop"), "{failure:?}");
        let stopped_at = failure.event.unwrap();
        assert_eq!(stopped_at.stream, "a-1");
        assert!(!handled(&store).await.contains(&stopped_at.position.0));
        bad.mend(1);
        assert_eq!(retry(&after, LetterFilter::default()).await, done(1));
        after.reactivate(&Criteria::all(), "in order again").await.unwrap();
        after.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(handled(&store).await.len(), 5);
    }

    /// E-33: one letter, only the oldest of its key; it answers as it would have, once.
    async fn e33_one_letter_is_retried_if_it_is_the_oldest_of_its_key(database: TestDatabase) {
        let store = database.store().await;
        let bad = Bad::at([1]);
        let engine = engine(&store, vec![picky(parking(), &bad)]);
        happened(&store, "a-1 a-1 b-1").await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let at = |position| LetterFilter::at(Position(position));
        assert_refused(retry(&engine, at(2)).await.stopped, "the one at position 1");
        assert_refused(retry(&engine, at(3)).await.stopped, "no such dead letter at position 3");

        let report = retry(&engine, at(1)).await;
        assert_eq!((report.done, report.failed), (0, 1));
        assert_eq!(report.failure.unwrap().chain, ["cannot digest position 1"]);
        let Reason::Failed { attempts: 2, .. } = letters(&engine).await.remove(0).reason else { panic!() };

        bad.mend(1);
        assert_eq!(retry(&engine, at(1)).await, done(1));
        assert_eq!(positions_of(&letters(&engine).await), [2]);
        happened(&store, "a-1").await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(letters(&engine).await.len(), 2, "the key still has one, so the new one is behind it");
        assert_eq!(retry(&engine, at(2)).await, done(1));
        assert_eq!(retry(&engine, LetterFilter::default()).await, done(1));
        happened(&store, "a-1").await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(letters(&engine).await, [], "the key flows again");

        let events = crate::given::all_events(&store).await;
        let id_at = |position: &i64| events.iter().find(|event| event.position.0 == *position).unwrap().id;
        let asked: Vec<_> = handled(&store).await.iter().map(id_at).map(Some).collect();
        let answered: Vec<_> = events.iter().filter(|event| event.event_type == "Answered").collect();
        assert_eq!(answered.iter().map(|event| event.causation_id).collect::<Vec<_>>(), asked);
        let history = engine.history("picky", 100).await.unwrap();
        assert!(history.iter().any(|line| line.why == "handled the dead letter at position 1: mended"), "{history:?}");
    }

    /// E-33: of a kind, key by key, oldest first; a key whose oldest fails again keeps all of its letters.
    async fn e33_all_of_a_kind_are_retried_key_by_key(database: TestDatabase) {
        let store = database.store().await;
        let bad = Bad::at([1, 2, 3]);
        let engine = engine(&store, vec![picky(parking(), &bad)]);
        happened(&store, "a-1 b-1 c-1 c-1 b-1 a-1").await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        bad.mend(1);
        bad.mend(3);
        let error = |text: &str| LetterFilter { error: Some(text.to_owned()), ..LetterFilter::default() };
        assert_eq!(retry(&engine, error("of another \"kind\"")).await, done(0));
        let none = LetterFilter { event_type: Some("Else".to_owned()), ..LetterFilter::default() };
        assert_eq!(retry(&engine, none).await, done(0));
        assert_eq!(retry(&engine, error("position 3")).await, done(2));
        let of_type = LetterFilter { event_type: Some("Happened".to_owned()), ..error("digest") };
        let report = retry(&engine, of_type).await;
        assert_eq!((report.done, report.failed, report.stopped), (2, 1, None));
        assert_eq!(handled(&store).await, [3, 4, 1, 6]);
        assert_eq!(positions_of(&letters(&engine).await), [2, 5]);
    }

    /// E-33: what is given up leaves a line with who and why; what is behind stays until it is tried.
    async fn e33_what_is_discarded_is_in_the_history(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![picky(parking(), &Bad::at([1, 2]))]).on_behalf_of("ann");
        happened(&store, "a-1 b-1 a-1 b-1").await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let at = LetterFilter::at(Position(1));
        let report = engine.discard_dead_letters("picky", &at, " ").await.unwrap();
        assert_refused(report.stopped, "without a reason");
        let report = engine.discard_dead_letters("picky", &at, "nobody needs it").await.unwrap();
        assert_eq!(report, done(1));
        assert_eq!(engine.discard_dead_letters("picky", &at, "again").await.unwrap(), done(0));
        let last = engine.history("picky", 1).await.unwrap().remove(0);
        assert!(last.why.starts_with("discarded the dead letter at position 1 (Happened "), "{last:?}");
        assert!(last.why.ends_with(": nobody needs it") && last.who == "ann", "{last:?}");
        assert_eq!(positions_of(&letters(&engine).await), [2, 3, 4]);
        assert_eq!(retry(&engine, LetterFilter::of_key("a-1")).await, done(1));

        let all = LetterFilter::default();
        assert_eq!(engine.discard_dead_letters("picky", &all, "clean").await.unwrap(), done(2));
        assert_eq!(engine.history("picky", 2).await.unwrap().iter().filter(|line| line.why.ends_with("clean")).count(), 2);
        assert_eq!(look(&engine, "picky").await.letters.open, 0);
        happened(&store, "b-1").await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let answers = store.head().await.unwrap().position.0 - 1;
        assert_eq!(handled(&store).await, [3, answers]);
    }

    /// E-33: a subscription that a person stopped, or that is gone, tries nothing.
    async fn e33_nothing_is_tried_for_one_that_is_stopped(database: TestDatabase) {
        let store = database.store().await;
        let bad = Bad::at([1]);
        let subscriber = picky(parking(), &bad);
        let program = engine(&store, vec![subscriber.clone()]);
        let without_code = engine(&store, vec![]);
        happened(&store, "a-1").await;
        program.catch_up(&Criteria::all()).await.unwrap();
        bad.mend(1);
        let all = LetterFilter::default;
        program.pause(&Criteria::all(), "wait").await.unwrap();
        assert_refused(retry(&program, all()).await.stopped, "it is paused; reactivate it first");
        assert_eq!(look(&program, "picky").await.letters.open, 1, "pausing keeps them");
        assert_refused(retry(&without_code, all()).await.stopped, "this program has no subscriber");
        without_code.detach(&Criteria::all()).await.unwrap();
        assert_refused(retry(&program, all()).await.stopped, "it is detached");
        program.reactivate(&Criteria::all(), "go on").await.unwrap();
        assert_eq!(retry(&program, all()).await, done(1));
        let gone = program.retry_dead_letters("nobody", &all(), "x").await.unwrap().stopped;
        assert_refused(gone, "there is no such subscription");
    }

    /// E-33: what its subscriber does not want any more is let go, and that is said.
    async fn e33_what_nobody_wants_any_more_is_let_go(database: TestDatabase) {
        let store = database.store().await;
        let before = engine(&store, vec![picky(parking(), &Bad::at([1]))]);
        happened(&store, "a-1 a-1").await;
        before.catch_up(&Criteria::all()).await.unwrap();
        let after = engine(&store, vec![Arc::new(Scripted::idle(parking().on(["Else"])))]);
        assert_eq!(retry(&after, LetterFilter::default()).await, done(2));
        assert_eq!((handled(&store).await, letters(&after).await), (vec![], vec![]));
        let history = after.history("picky", 2).await.unwrap();
        assert!(history.iter().all(|line| line.why.contains("does not want any more: mended")), "{history:?}");
    }

    /// E-11, E-14: letters end with their subscription, and when all of its events come again.
    async fn e11_e14_removal_and_replay_forget_letters(database: TestDatabase) {
        let store = database.store().await;
        let bad = Bad::at([1]);
        let engine = engine(&store, vec![picky(parking(), &bad)]);
        happened(&store, "a-1 a-1 b-1").await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let outcome = engine.replay("picky", "anew", |_, _| {}).await.unwrap();
        assert!(matches!(&outcome, Outcome::Parked { parked, .. } if parked.letters == 2), "{outcome:?}");
        assert_eq!(positions_of(&letters(&engine).await), [1, 2]);
        bad.mend(1);
        let outcome = engine.replay("picky", "anew", |_, _| {}).await.unwrap();
        assert_eq!(outcome, Outcome::CaughtUp { events: 3 });
        assert_eq!((handled(&store).await, letters(&engine).await), (vec![1, 2, 3], vec![]));
        let history = engine.history("picky", 100).await.unwrap();
        assert!(history.iter().any(|line| line.why == "anew (and forgot 2 dead letters)"), "{history:?}");

        bad.add(1);
        engine.replay("picky", "anew", |_, _| {}).await.unwrap();
        assert_eq!(look(&engine, "picky").await.letters.open, 2);
        engine.remove(&Criteria::all(), "not needed").await.unwrap();
        assert_eq!(letters(&engine).await, []);
        bad.mend(1);
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(handled(&store).await, [1, 2, 3]);
    }

    /// E-33: a subscription that is finished still has its letters tried.
    async fn e33_one_that_is_finished_has_its_letters_tried(database: TestDatabase) {
        let store = database.store().await;
        let bad = Bad::at([1]);
        let definition = parking().with_run_mode(RunMode::Once);
        let engine = engine(&store, vec![picky(definition, &bad)]);
        happened(&store, "a-1 a-1").await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(status(&engine, "picky").await, Status::Finished);
        bad.mend(1);
        assert_eq!(retry(&engine, LetterFilter::default()).await, done(2));
        assert_eq!(handled(&store).await, [1, 2]);
    }

    /// E-33: 100,000 letters are listed page by page, and a unit behind them costs one look.
    async fn e33_100_000_letters_are_listed_in_pages(database: TestDatabase) {
        let store = database.store().await;
        let poison = Poison::Park { key: ParkKey::Stream, cap_count: 1_000_000, cap_share: 1.0 };
        let bad = Bad::at([1]);
        let engine = engine(&store, vec![picky(parking().with_poison(poison), &bad)]);
        append_typed(&store, "a-1", &vec!["Happened"; 100_000]).await;
        let outcome = only(engine.catch_up(&Criteria::all()).await.unwrap());
        let Outcome::Parked { events: 0, parked, .. } = outcome else { panic!("{outcome:?}") };
        assert_eq!(parked.letters, 100_000);

        let (mut listed, mut after) = (Vec::new(), None::<(String, Position)>);
        loop {
            let from = after.as_ref().map(|(id, position)| (id.as_str(), *position));
            let page = engine.dead_letters(None, &LetterFilter::default(), from, 7_000).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some((last.subscription.clone(), last.event.position));
            listed.extend(positions_of(&page));
        }
        assert_eq!(listed, (1..=100_000).collect::<Vec<_>>());
        let (key, after) = (LetterFilter::of_key("a-1"), Some(("picky", Position(99_998))));
        let page = engine.dead_letters(Some("picky"), &key, after, 9).await.unwrap();
        assert_eq!(positions_of(&page), [99_999, 100_000]);

        happened(&store, "b-1 a-1").await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(handled(&store).await, [100_001]);
        let report = engine.discard_dead_letters("picky", &LetterFilter::default(), "enough").await.unwrap();
        assert_eq!(report, done(100_001));
    }
}
