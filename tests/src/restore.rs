//! After a restore (S-22): a log knows where it lives, and a subscription whether it still stands where it stood.

use std::fs;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, Connection as _, Executor, PgConnection};
use store::{ExpectedVersion, Fault, Options, PlaceError, Position, Setup, Store, StoreError, TableName};
use subscription_engine::{Criteria, Definition, Engine, Outcome, State, Status, Stray};
use testkit::{Collector, Scripted, TestDatabase, both, positions};

use crate::engine::{Running, append, engine, look, only, status, until};
use crate::engine_failure::failure_of;
use crate::given::{event, stream};

const ALL: [&[store::Migration]; 2] = [store::MIGRATIONS, subscription_engine::MIGRATIONS];

async fn open(url: &str) -> Result<Store, StoreError> {
    Store::open(url, &Options::default(), &ALL).await
}

async fn open_to_look(url: &str) -> Store {
    Store::open_to_look(url, &Options::default(), &ALL).await.unwrap()
}

fn epoch(store: &Store) -> Option<i64> {
    store.place().unwrap().epoch
}

/// Why a log is not worked on.
#[track_caller]
fn refused(result: Result<Store, StoreError>) -> PlaceError {
    match result {
        Err(StoreError::Place(error)) => error,
        other => panic!("not refused for its place: {other:?}"),
    }
}

/// Makes the log lose what stands behind a position, as a restore of an older backup does; subscriptions stay.
pub(crate) async fn lose_the_end(store: &Store, after: i64) {
    let mut tx = store.begin().await.unwrap();
    unguard(&mut tx).await;
    tx.execute("DELETE FROM herald_events WHERE position > $1", (Position(after),)).await.unwrap();
    let gone = "DELETE FROM herald_streams WHERE NOT EXISTS
                    (SELECT 1 FROM herald_events WHERE herald_events.stream = herald_streams.stream)";
    tx.execute(gone, ()).await.unwrap();
    let streams = "UPDATE herald_streams SET version =
                       (SELECT MAX(version) FROM herald_events WHERE herald_events.stream = herald_streams.stream)";
    tx.execute(streams, ()).await.unwrap();
    if let store::Connection::Postgres(connection) = tx.connection() {
        let set = format!("SELECT setval('herald_positions', {after})");
        connection.execute(sqlx::raw_sql(AssertSqlSafe(set))).await.unwrap();
        let published = format!("UPDATE herald_safe_head SET position = LEAST(position, {after})");
        connection.execute(sqlx::raw_sql(AssertSqlSafe(published))).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// Switches off what keeps events from being changed.
pub(crate) async fn unguard(tx: &mut store::Tx) {
    match tx.kind() {
        store::DatabaseKind::Postgres => {
            tx.execute("ALTER TABLE herald_events DISABLE TRIGGER USER", ()).await.unwrap();
        }
        store::DatabaseKind::Sqlite => {
            tx.execute("DROP TRIGGER IF EXISTS herald_events_never_change", ()).await.unwrap();
            tx.execute("DROP TRIGGER IF EXISTS herald_events_never_go", ()).await.unwrap();
        }
    }
}

/// A projector and one that acts, both at position 6 of 6.
async fn two_at_six(store: &Store) -> (Engine, Arc<Collector>) {
    let collector = Collector::new(Definition::projector("reader"));
    let actor = Scripted::idle(Definition::projector("other").on(["Rare"]));
    let engine = engine(store, vec![collector.clone(), Arc::new(actor)]);
    append(store, 6).await;
    engine.catch_up(&Criteria::all()).await.unwrap();
    (engine, collector)
}

both! {
    /// The first one that opens a log writes down where it lives; nobody after it does.
    async fn s22_a_log_knows_where_it_lives(database: TestDatabase) {
        let store = database.store().await;
        assert_eq!(epoch(&store), Some(1));
        let (one, two) = tokio::join!(database.open(), database.open());
        assert_eq!((epoch(&one), epoch(&two)), (Some(1), Some(1)));
        assert_eq!(one.place().unwrap().here, store.place().unwrap().here);
        assert_eq!(one.place().unwrap().moved_from, None);
        let places = store.places().await.unwrap();
        assert_eq!(places.len(), 1);
        assert_eq!((places[0].epoch, places[0].why.as_str()), (1, "found here"));
    }

    /// A log of before there were places takes the first one that it is found at, whoever comes first.
    async fn s22_an_older_log_is_at_home_where_it_is_found(database: TestDatabase) {
        let store = database.store().await;
        store.database().execute("DELETE FROM herald_log_places", ()).await.unwrap();

        let opened = futures_util::future::join_all((0..8).map(|_| database.open())).await;

        assert!(opened.iter().all(|store| epoch(store) == Some(1)));
        assert_eq!(store.places().await.unwrap().len(), 1);
    }

    /// Looking writes nothing.
    async fn s22_looking_does_not_arrive(database: TestDatabase) {
        let store = database.store().await;
        store.database().execute("DELETE FROM herald_log_places", ()).await.unwrap();

        let looking = open_to_look(database.url()).await;

        assert_eq!(epoch(&looking), None);
        assert_eq!(looking.refusals().len(), 0);
        assert_eq!(store.places().await.unwrap().len(), 0);
    }

    /// What an older program moves, which knows nothing of events at positions, is not held against it.
    async fn s22_a_position_that_an_older_program_moved_is_believed(database: TestDatabase) {
        let store = database.store().await;
        let (engine, _) = two_at_six(&store).await;
        append(&store, 2).await;
        let older = "UPDATE herald_subscriptions SET position = 8 WHERE id = 'other'";
        store.database().execute(older, ()).await.unwrap();

        assert_eq!(engine.bad_checkpoints(&Criteria::all()).await.unwrap(), []);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(look(&engine, "other").await.position, Some(Position(9)));
    }

    /// A restored log that is shorter than a checkpoint: stopped with a reason, while others go on.
    async fn s22_a_checkpoint_beyond_the_end_is_stopped(database: TestDatabase) {
        let store = database.store().await;
        let (_, collector) = two_at_six(&store).await;
        lose_the_end(&store, 4).await;
        let late = Collector::new(Definition::projector("late"));
        let engine = engine(
            &store,
            vec![collector.clone(), Arc::new(Scripted::idle(Definition::projector("other").on(["Rare"]))), late.clone()],
        );

        let bad = engine.bad_checkpoints(&Criteria::all()).await.unwrap();
        let beyond = Stray::BeyondTheEnd { position: Position(6), end: Position(4) };
        assert_eq!(bad.iter().map(|bad| bad.subscription.as_str()).collect::<Vec<_>>(), ["other", "reader"]);
        assert!(bad.iter().all(|bad| bad.stray == beyond), "{bad:?}");

        let worker = Running::start(&engine).await;
        until(&engine, "reader", |now| now.state.status() == Status::Error).await;
        until(&engine, "late", |now| now.position == Some(Position(4))).await;
        worker.stop().await;

        let failure = failure_of(&engine, "reader").await;
        assert!(failure.message().contains("it stands at position 6, and the log ends at 4"), "{failure:?}");
        assert!(failure.message().contains("herald projection replay reader"), "{failure:?}");
        let now = look(&engine, "reader").await;
        assert_eq!(now.position, Some(Position(6)));
        assert!(matches!(now.state, State::Error { next_retry: None, .. }), "{now:?}");
        assert_eq!(late.positions(&store).await, positions(4));
    }

    /// A log that lost its end and grew again has every position; the event tells.
    async fn s22_a_log_that_grew_again_is_noticed_and_never_silently_read_on(database: TestDatabase) {
        let store = database.store().await;
        let (engine, collector) = two_at_six(&store).await;
        lose_the_end(&store, 4).await;
        append(&store, 5).await;

        let report = engine.run(&Criteria::id("reader"), None).await.unwrap();

        let Outcome::Failed { failure } = only(report) else { panic!("it went on") };
        assert!(failure.message().contains("at position 6 it stood at event"), "{failure:?}");
        // Nothing that an operator does by the way makes it fit.
        for _ in 0..2 {
            let outcome = only(engine.reactivate(&Criteria::id("reader"), "try").await.unwrap());
            assert!(matches!(&outcome, Outcome::Refused { why } if why.contains("does not fit the log")), "{outcome:?}");
            engine.pause(&Criteria::id("reader"), "leave it").await.unwrap();
        }
        assert_eq!(status(&engine, "reader").await, Status::Paused);
        assert_eq!(look(&engine, "reader").await.position, Some(Position(6)));
        assert_eq!(collector.positions(&store).await, positions(6));

        let outcome = engine.replay("reader", "restored", |_, _| ()).await.unwrap();
        assert_eq!(outcome, Outcome::CaughtUp { events: 9 });
        assert_eq!(collector.positions(&store).await, positions(9));
        let bad = engine.bad_checkpoints(&Criteria::all()).await.unwrap();
        assert_eq!(bad.iter().map(|bad| bad.subscription.as_str()).collect::<Vec<_>>(), ["other"]);
    }

    /// Wherever a position is written, the event at it is written with it.
    async fn s22_every_way_to_a_position_keeps_its_event(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let failing = testkit::Failing::new(Definition::projector("failing"), [5]);
        let engine = engine(&store, vec![
            Collector::new(Definition::projector("booted")),
            Arc::new(Scripted::idle(Definition::processor("from_now"))),
            Arc::new(Scripted::idle(Definition::projector("wants_nothing").on(["Rare"]))),
            failing.clone(),
        ]);
        engine.set_up(&Criteria::id("booted"), false).await.unwrap();
        append(&store, 3).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        append(&store, 3).await;
        engine.catch_up(&Criteria::all()).await.unwrap();

        let sql = "SELECT s.id, s.position, e.position
                     FROM herald_subscriptions s LEFT JOIN herald_events e ON e.id = s.position_event_id
                    ORDER BY s.id";
        let rows: Vec<(String, Option<i64>, Option<i64>)> = store.database().fetch_all(sql, ()).await.unwrap();
        let rows: Vec<_> = rows.iter().map(|(id, at, event)| (id.as_str(), *at, *event)).collect();
        assert_eq!(rows, [
            ("booted", Some(6), Some(6)),
            ("failing", Some(4), Some(4)),
            ("from_now", Some(6), Some(6)),
            ("wants_nothing", Some(6), Some(6)),
        ]);
        assert_eq!(engine.bad_checkpoints(&Criteria::all()).await.unwrap(), []);
    }
}

#[tokio::test]
async fn s22_a_copy_beside_its_original_is_refused_until_it_is_adopted() {
    let database = TestDatabase::sqlite();
    append(&database.store().await, 3).await;
    let original = database.url().strip_prefix("sqlite:").unwrap().to_owned();
    let copy = format!("{original}.copy");
    copy_of(&database, &copy).await;
    let url = format!("sqlite:{copy}");

    let error = refused(open(&url).await);
    let PlaceError::Copied { original: found } = &error else { panic!("{error}") };
    assert_eq!(found.to_string(), original);
    assert!(error.to_string().contains("herald store adopt"), "{error}");

    // It can be looked at, and nothing is written by that.
    let looking = open_to_look(&url).await;
    assert_eq!(looking.refusals().len(), 1);
    assert_eq!(looking.head().await.unwrap().position, Position(3));
    refused(open(&url).await);

    let place = looking.adopt("the original is switched off", "anna").await.unwrap();
    assert_eq!(place.epoch, Some(2));
    let adopted = open(&url).await.unwrap();
    assert_eq!((epoch(&adopted), &adopted.place().unwrap().moved_from), (Some(2), &None));
    let places = adopted.places().await.unwrap();
    assert_eq!((places[1].why.as_str(), places[1].who.as_str()), ("the original is switched off", "anna"));
    // Once more changes nothing, and the original never heard of it.
    assert_eq!(looking.adopt("again", "anna").await.unwrap().epoch, Some(2));
    assert_eq!(epoch(&database.open().await), Some(1));
}

#[tokio::test]
async fn s22_a_moved_file_is_at_home_in_its_new_place() {
    let database = TestDatabase::sqlite();
    append(&database.store().await, 3).await;
    let original = database.url().strip_prefix("sqlite:").unwrap().to_owned();
    let copy = format!("{original}.copy");
    copy_of(&database, &copy).await;
    for file in [original.clone(), format!("{original}-wal"), format!("{original}-shm")] {
        let _ = fs::remove_file(file);
    }
    let url = format!("sqlite:{copy}");

    // Many at once: one of them notes it.
    let opened = futures_util::future::join_all((0..8).map(|_| open(&url))).await;

    let opened: Vec<Store> = opened.into_iter().map(Result::unwrap).collect();
    assert!(opened.iter().all(|store| epoch(store) == Some(2)));
    let noticed = opened.iter().filter(|store| store.place().unwrap().moved_from.is_some()).count();
    assert_eq!(noticed, 1);
    let places = opened[0].places().await.unwrap();
    assert!(places[1].why.contains(&original), "{}", places[1].why);
    assert_eq!(open(&url).await.unwrap().place().unwrap().moved_from, None);
}

/// A backup that is put where the log was is another file of the same name.
#[tokio::test]
async fn s22_a_backup_in_the_place_of_the_log_is_taken_over() {
    let database = TestDatabase::sqlite();
    append(&database.store().await, 3).await;
    let original = database.url().strip_prefix("sqlite:").unwrap().to_owned();
    let backup = format!("{original}.backup");
    copy_of(&database, &backup).await;
    for file in [format!("{original}-wal"), format!("{original}-shm")] {
        let _ = fs::remove_file(file);
    }
    fs::rename(&backup, &original).unwrap();

    assert_eq!(epoch(&database.open().await), Some(2));
    assert_eq!(epoch(&database.open().await), Some(2));
}

#[tokio::test]
async fn s22_the_same_file_by_another_path_is_no_copy() {
    let database = TestDatabase::sqlite();
    append(&database.store().await, 3).await;
    let original = database.url().strip_prefix("sqlite:").unwrap().to_owned();
    let link = format!("{original}.link");
    std::os::unix::fs::symlink(&original, &link).unwrap();
    assert_eq!(epoch(&open(&format!("sqlite:{link}")).await.unwrap()), Some(1));
    // After a restart of the machine the device has another number, and the file is reached by another path.
    let renumbered =
        format!("UPDATE herald_log_places SET place = json_set(place, '$.device', 1, '$.file', '{link}')");
    raw(&database.open().await, renumbered).await;
    assert_eq!(epoch(&database.open().await), Some(1));
}

/// Where the log lived is something else now, or something that cannot be looked at.
#[tokio::test]
async fn s22_what_stands_where_the_log_lived_is_looked_at() {
    let database = TestDatabase::sqlite();
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().join("herald.db");
    let lived_there = format!(
        "UPDATE herald_log_places SET place = json_set(place, '$.inode', 1, '$.file', '{}')",
        there.display()
    );
    raw(&database.store().await, lived_there.clone()).await;
    fs::write(&there, "a letter, and no database ".repeat(100)).unwrap();
    assert_eq!(epoch(&database.open().await), Some(2));

    raw(&database.open().await, "DELETE FROM herald_log_places WHERE epoch = 2".to_owned()).await;
    fs::remove_file(&there).unwrap();
    let another = open(&format!("sqlite:{}", there.display())).await.unwrap();
    another.set_up(&Setup { view: TableName::new("events").unwrap(), test_clock: None }).await.unwrap();
    assert_eq!(epoch(&database.open().await), Some(2), "another log lives there now");

    raw(&database.open().await, "DELETE FROM herald_log_places WHERE epoch = 2".to_owned()).await;
    another.close().await;
    fs::remove_file(&there).unwrap();
    fs::create_dir(&there).unwrap();
    let error = refused(open(database.url()).await);
    assert!(matches!(error, PlaceError::Unsure { .. }), "{error}");
    let nonsense = "UPDATE herald_log_places SET place = '{\"kind\":\"moon\"}'";
    let looking = open_to_look(database.url()).await;
    raw(&looking, nonsense.to_owned()).await;
    let error = refused(open(database.url()).await);
    assert!(error.to_string().contains("epoch 1"), "{error}");
    assert_eq!(looking.adopt("it is here", "anna").await.unwrap().epoch, Some(2));
    assert_eq!(epoch(&database.open().await), Some(2));
}

#[tokio::test]
async fn s22_a_copied_database_on_a_server_is_refused_until_it_is_adopted() {
    let name = "s22_a_copied_database_on_a_server_is_refused_until_it_is_adopted";
    let Some(url) = testkit::postgres_or_left_out(name) else { return };
    let (server, _) = url.rsplit_once('/').unwrap();
    let (original, copy) = (unique("original"), unique("copy"));
    let mut owner = PgConnection::connect(url).await.unwrap();
    owner.execute(sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {original}")))).await.unwrap();
    let database = TestDatabase::schema_in(&format!("{server}/{original}")).await;
    let store = database.store().await;
    append(&store, 3).await;
    store.close().await;
    let create = format!("CREATE DATABASE {copy} TEMPLATE {original}");
    owner.execute(sqlx::raw_sql(AssertSqlSafe(create))).await.unwrap();
    let url = database.url().replace(&original, &copy);

    let error = refused(open(&url).await);
    assert!(matches!(error, PlaceError::Elsewhere { .. }), "{error}");
    for words in [original.as_str(), copy.as_str(), "herald store adopt"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    let looking = open_to_look(&url).await;
    assert_eq!((looking.refusals().len(), looking.head().await.unwrap().position), (1, Position(3)));

    looking.adopt("moved to a new database", "anna").await.unwrap();
    assert_eq!(epoch(&open(&url).await.unwrap()), Some(2));
    assert_eq!(epoch(&database.open().await), Some(1));
}

/// A schema that got another name, and a role that may only read.
#[tokio::test]
async fn s22_a_renamed_schema_is_the_same_place_and_a_reader_writes_none() {
    let name = "s22_a_renamed_schema_is_the_same_place_and_a_reader_writes_none";
    let Some(database) = TestDatabase::postgres(name).await else { return };
    let store = database.store().await;
    let schema = database.url().rsplit_once("%3D").unwrap().1.to_owned();
    let renamed = unique("renamed");
    raw(&store, format!("ALTER SCHEMA {schema} RENAME TO {renamed}")).await;
    let url = database.url().replace(&schema, &renamed);
    let store = open(&url).await.unwrap();
    assert_eq!(epoch(&store), Some(1));
    // The functions go by the old name, until the log is set up again.
    store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap_err();
    let store = TestDatabase::at(&url).store().await;
    store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap();

    let reader = unique("reader");
    raw(&store, "DELETE FROM herald_log_places".to_owned()).await;
    raw(&store, format!("CREATE ROLE {reader} LOGIN")).await;
    raw(&store, format!("GRANT USAGE ON SCHEMA {renamed} TO {reader}")).await;
    raw(&store, format!("GRANT SELECT ON ALL TABLES IN SCHEMA {renamed} TO {reader}")).await;
    raw(&store, format!("GRANT SELECT ON ALL SEQUENCES IN SCHEMA {renamed} TO {reader}")).await;
    let login = url.split_once("://").unwrap().1.split_once('@').unwrap().0.to_owned();
    let reading = open(&url.replacen(&format!("{login}@"), &format!("{reader}@"), 1)).await.unwrap();
    assert_eq!(epoch(&reading), None);
    assert_eq!(store.places().await.unwrap().len(), 0);
    // Nor does a role that may not even see where the log lives stop at that.
    raw(&store, format!("REVOKE SELECT ON herald_log_places FROM {reader}")).await;
    let blind = open(&url.replacen(&format!("{login}@"), &format!("{reader}@"), 1)).await.unwrap();
    assert!(blind.place().is_none());
}

#[tokio::test]
async fn s22_a_file_that_cannot_be_written_is_read_where_it_is() {
    let database = TestDatabase::sqlite();
    append(&database.store().await, 3).await;
    let copy = format!("{}.copy", database.url().strip_prefix("sqlite:").unwrap());
    copy_of(&database, &copy).await;
    fs::remove_file(database.url().strip_prefix("sqlite:").unwrap()).unwrap();

    let options = Options { create: false, ..Options::default() };
    let store = Store::open(&format!("sqlite:{copy}?mode=ro"), &options, &ALL).await.unwrap();

    assert_eq!(epoch(&store), Some(1));
    assert_eq!(store.head().await.unwrap().position, Position(3));
    let error = store.adopt("here", "anna").await.unwrap_err();
    assert_eq!(Fault::of(&error), Fault::ReadOnly, "{error}");
}

/// A consistent copy of an SQLite log.
pub(crate) async fn copy_of(database: &TestDatabase, to: &str) {
    let mut connection = sqlx::SqliteConnection::connect(database.url()).await.unwrap();
    connection.execute(sqlx::raw_sql(AssertSqlSafe(format!("VACUUM INTO '{to}'")))).await.unwrap();
    connection.close().await.unwrap();
}

fn unique(name: &str) -> String {
    format!("{name}_{}", uuid::Uuid::new_v4().simple())
}

/// A statement that only a test needs.
pub(crate) async fn raw(store: &Store, sql: String) {
    let mut tx = store.begin().await.unwrap();
    let sql = sqlx::raw_sql(AssertSqlSafe(sql));
    match tx.connection() {
        store::Connection::Sqlite(connection) => connection.execute(sql).await.map(drop).unwrap(),
        store::Connection::Postgres(connection) => connection.execute(sql).await.map(drop).unwrap(),
    }
    tx.commit().await.unwrap();
}
