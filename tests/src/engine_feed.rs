//! The shared feed: what is read once for many, and that whoever reads from memory misses nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures_util::TryStreamExt;
use store::{
    Direction, Event, Filter, Hook, Hooks, Part, Position, Reading, Sql, Store, TableName, Upcaster,
    Upcasters,
};
use subscription_engine::{
    BoxError, Context, Criteria, Definition, Engine, Outcome, RunMode, Settings, Stall, Standing, State,
    Status, Stray, Subscriber,
};
use testkit::{Collector, Held, Random, Scripted, both, position, positions};
use uuid::Uuid;

use crate::engine::{Running, append, append_typed, engine, look, only, until};
use crate::engine_standing::until_standing;
use crate::restore::lose_the_end;

/// Counts what is read of the log.
#[derive(Clone, Default)]
struct Reads(Arc<Counts>);

#[derive(Default)]
struct Counts {
    with_events: AtomicUsize,
    events: AtomicUsize,
}

impl Reads {
    fn with_events(&self) -> usize {
        self.0.with_events.load(Ordering::SeqCst)
    }

    fn events(&self) -> usize {
        self.0.events.load(Ordering::SeqCst)
    }

    fn of(&self, store: &Store) -> Store {
        store.clone().with_hooks(Hooks::new().with(0, self.clone()))
    }
}

impl Hook for Reads {
    fn name(&self) -> &'static str {
        "reads"
    }

    fn after_read(&self, reading: &Reading<'_>, events: &[Event]) {
        // One event is read to say how long others wait for it.
        if let Reading::Log { direction: Direction::Forwards, limit: 2.., .. } = reading {
            self.0.with_events.fetch_add(usize::from(!events.is_empty()), Ordering::SeqCst);
            self.0.events.fetch_add(events.len(), Ordering::SeqCst);
        }
    }
}

fn idle(definition: Definition) -> Arc<dyn Subscriber> {
    Arc::new(Scripted::idle(definition))
}

async fn until_all(engine: &Engine, ids: impl IntoIterator<Item = String>, at: i64) {
    for id in ids {
        until(engine, &id, |now| now.state.status() == Status::Active && position(now) >= at).await;
    }
}

/// Small pages, and room for few of them.
fn cramped(engine: Engine) -> Engine {
    engine.with_settings(Settings { unit_events: 10, feed_bytes: 16 * 1024, ..Settings::default() })
}

both! {
    /// E-25: what is appended is read once, however many wait for it.
    async fn e25_one_read_is_enough_for_twenty(database: TestDatabase) {
        const WAVES: usize = 20;
        let store = database.store().await;
        let reads = Reads::default();
        let ids: Vec<String> = (0..20).map(|number| format!("s{number}")).collect();
        let subscribers = ids.iter().map(|id| idle(Definition::projector(id).on(["Wanted", "Unwanted"])));
        let engine = engine(&reads.of(&store), subscribers.collect());
        append_typed(&store, "thing-1", &["Wanted"]).await;
        let worker = Running::start(&engine).await;
        until_all(&engine, ids.clone(), 1).await;
        let before = reads.with_events();
        for wave in 0..WAVES {
            append_typed(&store, "thing-1", &["Wanted"]).await;
            until_all(&engine, ids.clone(), i64::try_from(wave).unwrap() + 2).await;
        }
        let with_events = reads.with_events() - before;
        worker.stop().await;
        // Each for itself would be 400.
        assert!(with_events <= 2 * WAVES, "{with_events} reads brought {WAVES} events to 20 subscriptions");
    }

    /// E-25: those that boot together read the log about once.
    async fn e25_ten_that_boot_together_do_not_read_the_log_ten_times(database: TestDatabase) {
        const EVENTS: usize = 10_000;
        let store = database.store().await;
        append(&store, EVENTS).await;
        let reads = Reads::default();
        let ids: Vec<String> = (0..10).map(|number| format!("s{number}")).collect();
        let engine = engine(&reads.of(&store), ids.iter().map(|id| idle(Definition::projector(id))).collect());
        let worker = Running::start(&engine).await;
        until_all(&engine, ids.clone(), 10_000).await;
        worker.stop().await;
        assert!(reads.events() >= EVENTS);
        assert!(reads.events() <= 3 * EVENTS, "{} events were read of {EVENTS}", reads.events());
    }

    /// E-25: those that an operation moves one after the other are given the same pages.
    async fn e25_one_operation_reads_what_is_new_once(database: TestDatabase) {
        let store = database.store().await;
        let reads = Reads::default();
        let ids: Vec<String> = (0..10).map(|number| format!("s{number}")).collect();
        let engine = engine(&reads.of(&store), ids.iter().map(|id| idle(Definition::projector(id))).collect());
        engine.catch_up(&Criteria::all()).await.unwrap();
        append(&store, 5).await;
        let before = reads.events();
        engine.run(&Criteria::all(), None).await.unwrap();
        assert_eq!(reads.events() - before, 5);
        for id in ids {
            assert_eq!(position(&look(&engine, &id).await), 5);
        }
    }

    /// E-25: a slow one delays nobody, falls out of what is kept in memory, and misses nothing.
    async fn e25_a_slow_one_reads_again_what_others_have_left_behind(database: TestDatabase) {
        let store = database.store().await;
        let slow = Held::before_writing(Definition::projector("slow"));
        let fast = Collector::new(Definition::projector("fast"));
        let engine = cramped(engine(&store, vec![slow.clone(), fast.clone()]));
        append(&store, 5).await;
        let worker = Running::start(&engine).await;
        slow.entered(1).await;
        append(&store, 500).await;
        until_all(&engine, ["fast".to_owned()], 505).await;
        assert_eq!(fast.positions(&store).await, positions(505));
        assert_eq!(slow.calls(), 1);

        slow.let_go(1_000);
        until_all(&engine, ["slow".to_owned()], 505).await;
        worker.stop().await;
        assert_eq!(slow.positions(&store).await, positions(505));
    }

    /// E-25: one that is far behind and wants little does not read everything, and near the head it does not read for
    /// itself.
    async fn e25_one_that_wants_little_does_not_read_all(database: TestDatabase) {
        const EVENTS: usize = 20_000;
        let store = database.store().await;
        let types: Vec<&str> =
            (1..=EVENTS).map(|number| if number % 200 == 0 { "Rare" } else { "Frequent" }).collect();
        append_typed(&store, "thing-1", &types).await;
        let reads = Reads::default();
        let rare = Collector::new(Definition::projector("rare").on(["Rare"]));
        let engine = engine(&reads.of(&store), vec![rare.clone(), idle(Definition::projector("all").in_group("all"))]);
        let one = Criteria { ids: None, groups: Some(vec!["projector".to_owned()]) };
        let worker = Running::start_for(&engine, one).await;
        until_all(&engine, ["rare".to_owned()], 20_000).await;
        worker.stop().await;

        let expected: Vec<i64> = (1..=100).map(|number| number * 200).collect();
        assert_eq!(rare.positions(&store).await, expected);
        // A page of all, to see how rare they are; what it wants; and perhaps a page of all at the end.
        assert!(reads.events() <= 3_000, "{} events were read for 100", reads.events());
    }

    /// E-25: a new operation believes nothing that was read before it began: the log may have been cut since (S-22).
    async fn e25_s22_what_was_read_of_a_log_that_was_cut_is_not_handed_out(database: TestDatabase) {
        let store = database.store().await;
        let (ahead, behind) = (Journal::new("ahead", Filter::all()), Journal::new("behind", Filter::all()));
        let engine = engine(&store, vec![ahead.clone(), behind.clone()]);
        engine.set_up(&Criteria::all(), true).await.unwrap();
        append(&store, 6).await;
        engine.run(&Criteria::id("behind"), Some(3)).await.unwrap();
        engine.run(&Criteria::id("ahead"), None).await.unwrap();

        lose_the_end(&store, 4).await;
        append_typed(&store, "other-1", &["Other", "Other", "Other"]).await;

        let report = engine.run(&Criteria::id("behind"), None).await.unwrap();
        assert_eq!(only(report), Outcome::CaughtUp { events: 4 });
        assert_eq!(behind.ids(&store).await, ids_of(&store, &Filter::all()).await);
        let Outcome::Failed { failure } = only(engine.run(&Criteria::id("ahead"), None).await.unwrap()) else {
            panic!("not refused");
        };
        assert!(failure.message().contains("does not fit the log"), "{failure:?}");
        let bad = engine.bad_checkpoints(&Criteria::all()).await.unwrap();
        assert!(matches!(&bad[..], [bad] if bad.subscription == "ahead" && matches!(bad.stray, Stray::OtherEvent { .. })));
    }

    /// E-25: nor does a worker that met a failure of the database, not even for one whose turn comes only then.
    async fn e25_s22_a_worker_forgets_what_it_read_before_a_failure(database: TestDatabase) {
        let store = database.store().await;
        let (ahead, behind) = (Journal::new("ahead", Filter::all()), Journal::new("behind", Filter::all()));
        let troubled = Scripted::new(Definition::projector("troubled").on(["Trouble"]), |_, _| {
            Box::pin(async { Err(sqlx::Error::PoolTimedOut.into()) })
        });
        let engine = engine(&store, vec![ahead.clone(), behind.clone(), Arc::new(troubled)]);
        engine.set_up(&Criteria::all(), true).await.unwrap();
        append(&store, 3).await;
        engine.run(&Criteria::id("behind"), None).await.unwrap();
        engine.pause(&Criteria::id("behind"), "it has to wait").await.unwrap();
        let worker = Running::start(&engine).await;
        append(&store, 3).await;
        until_all(&engine, ["ahead".to_owned()], 6).await;

        lose_the_end(&store, 4).await;
        append_typed(&store, "other-1", &["Other", "Other", "Trouble"]).await;
        until_standing(&engine, "troubled", |standing| {
            // Whether it had already written down that it stood at 6 or not.
            matches!(standing, Standing::Stalled(Stall::InTheWay { .. } | Stall::Failed { .. }))
        })
        .await;
        engine.reactivate(&Criteria::id("behind"), "its turn").await.unwrap();
        until(&engine, "behind", |now| position(now) >= 7 || now.state.status() == Status::Error).await;
        worker.stop().await;
        assert_eq!(behind.ids(&store).await, ids_of(&store, &Filter::all()).await);
    }

    /// E-20, E-25: whatever is appended, shared, forgotten, paused and restarted: everybody gets exactly its events, in
    /// their order, as upcasters show them.
    async fn e25_everybody_gets_exactly_its_events(database: TestDatabase) {
        let mut random = Random::new();
        for _ in 0..3 {
            at_random(&database_of(&database).await, &mut random).await;
        }
    }
}

/// Another one of this kind.
async fn database_of(database: &testkit::TestDatabase) -> testkit::TestDatabase {
    match database.url().split_once('?') {
        Some((url, _)) if database.is_postgres() => testkit::TestDatabase::schema_in(url).await,
        _ => testkit::TestDatabase::sqlite(),
    }
}

const TYPES: [&str; 6] = ["A", "B", "C", "Split", "Vanishing", "Renamed"];

fn upcasters() -> Upcasters {
    let part = |name: &'static str, event: &Event| Part::new(name, 1, event.payload.clone());
    let split = Upcaster::new("split", move |event| Ok(vec![part("Half", event), part("Other", event)]));
    let vanish = Upcaster::new("vanish", |_| Ok(Vec::new()));
    let rename = Upcaster::new("rename", move |event| Ok(vec![part("A", event)]));
    Upcasters::new([
        split.takes("Split", 1).gives("Half", 1).gives("Other", 1),
        vanish.takes("Vanishing", 1),
        rename.takes("Renamed", 1).gives("A", 1),
    ])
    .unwrap()
}

fn filter(random: &mut Random) -> Filter {
    const SHOWN: [&str; 6] = ["A", "B", "C", "Half", "Other", "Nobody"];
    let filter = match random.below(4) {
        0 => return Filter::all(),
        1 => Filter::all().category(["thing", "other", "nobody"][random.below(3) as usize]),
        _ => Filter::all(),
    };
    let types: BTreeSet<&str> = (0..=random.below(3)).map(|_| SHOWN[random.below(6) as usize]).collect();
    filter.types(types)
}

async fn append_at_random(store: &Store, random: &mut Random, most: u64) {
    let stream = format!("{}-{}", ["thing", "other"][random.below(2) as usize], random.below(5));
    // Mostly of few types, so that some are rare for a while.
    let kinds = 1 + random.below(6);
    let types: Vec<&str> = (0..=random.below(most)).map(|_| TYPES[random.below(kinds) as usize]).collect();
    append_typed(store, &stream, &types).await;
}

async fn at_random(database: &testkit::TestDatabase, random: &mut Random) {
    let store = database.store().await.with_upcasters(upcasters());
    let journals: Vec<Arc<Journal>> =
        (0..8).map(|number| Journal::new(&format!("journal_{number}"), filter(random))).collect();
    let settings = Settings {
        unit_events: 1 + random.below(40) as usize,
        feed_bytes: 1 + random.below(60_000) as usize,
        ..Settings::default()
    };
    let subscribers = || journals.iter().map(|journal| Arc::clone(journal) as Arc<dyn Subscriber>).collect();
    let here = engine(&store, subscribers()).with_settings(settings);
    let there = engine(&database.store().await.with_upcasters(upcasters()), subscribers());
    let there = there.with_settings(settings);
    append_at_random(&store, random, 300).await;
    here.set_up(&Criteria::all(), false).await.unwrap();
    let mut workers: [Option<Running>; 2] = [None, None];
    for _ in 0..40 {
        let id = Criteria::id(format!("journal_{}", random.below(8)));
        let place = random.below(2) as usize;
        let engine = [&here, &there][place];
        match random.below(10) {
            0 => drop(engine.pause(&id, "at random").await.unwrap()),
            1 => drop(engine.reactivate(&id, "at random").await.unwrap()),
            2 => match workers[place].take() {
                Some(worker) => worker.stop().await,
                None => workers[place] = Some(Running::start(engine).await),
            },
            3 => {
                if let Some(worker) = workers[place].take() {
                    worker.kill().await;
                }
            }
            4 => drop(engine.run(&id, Some(1 + random.below(30))).await.unwrap()),
            5 => append_at_random(&store, random, 60).await,
            _ => append_at_random(&store, random, 8).await,
        }
    }
    for worker in workers.into_iter().flatten() {
        worker.stop().await;
    }
    here.reactivate(&Criteria::all(), "to the end").await.unwrap();
    here.catch_up(&Criteria::all()).await.unwrap();
    for journal in &journals {
        let subscription = look(&here, &journal.id).await;
        assert_eq!(subscription.state, State::Active, "{subscription:?}");
        assert_eq!(journal.ids(&store).await, ids_of(&store, &journal.filter).await, "{journal:?}");
    }
}

/// Positions and ids of what the log shows through this filter.
async fn ids_of(store: &Store, filter: &Filter) -> Vec<(i64, Uuid)> {
    let events: Vec<Event> = store.events(filter.clone(), Position::START).try_collect().await.unwrap();
    events.iter().map(|event| (event.position.0, event.id)).collect()
}

/// Writes down each event that it is given, in this order; it fails for one that comes twice or too late.
#[derive(Debug)]
struct Journal {
    id: String,
    filter: Filter,
    table: &'static str,
}

impl Journal {
    fn new(id: &str, filter: Filter) -> Arc<Self> {
        Arc::new(Self { id: id.to_owned(), filter, table: String::leak(format!("of_{id}")) })
    }

    async fn ids(&self, store: &Store) -> Vec<(i64, Uuid)> {
        let table = TableName::new(self.table).unwrap();
        let sql = Sql::named("SELECT position, id FROM {t} ORDER BY number", &table);
        store.database().fetch_all(sql, ()).await.unwrap()
    }
}

#[async_trait]
impl Subscriber for Journal {
    fn definition(&self) -> Definition {
        Definition::plain(&self.id, RunMode::FromBeginning)
            .within(self.filter.clone())
            .with_table("t", self.table)
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        let create =
            "CREATE TABLE {t} (number BIGINT PRIMARY KEY, position BIGINT NOT NULL, id UUID NOT NULL UNIQUE)";
        let create = Sql::named(create, &context.table("t")?);
        context.tx().await?.execute(create, ()).await?;
        Ok(())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        let last = Sql::named(
            "SELECT COALESCE(MAX(number), 0), COALESCE(MAX(position), 0) FROM {t}",
            &context.table("t")?,
        );
        let last: Option<(i64, i64)> = context.tx().await?.fetch_optional(last, ()).await?;
        let (number, position) = last.unwrap();
        if events[0].position.0 <= position || !events.is_sorted_by_key(|event| event.position) {
            return Err(format!("position {} comes after {position}", events[0].position).into());
        }
        let rows = events.iter().zip(number + 1..).map(|(event, number)| (number, event.position, event.id));
        context
            .execute_many("t", "INSERT INTO {t} (number, position, id) VALUES {rows}", rows.collect())
            .await?;
        Ok(())
    }
}
