//! A physical standby can be read: up to what is published, and on from there as long as there is no hole (S-09).

use sqlx::{Connection as _, Executor, PgConnection};
use store::{Filter, Head, Options, Position, Store};
use testkit::{Cluster, Delivered, Findings, Prepared, Random, Table, TestDatabase, Wanted};
use testkit::{judge, own_postgres_or_left_out};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::{append, appended_in, positions, read};

/// A primary with a standby, and a log.
struct Scene {
    primary: Cluster,
    standby: Cluster,
    database: TestDatabase,
    /// A handle that leads to the primary.
    store: Store,
    /// A handle that leads to the standby.
    reading: Store,
}

impl Scene {
    async fn new(name: &str) -> Option<Self> {
        let primary = own_postgres_or_left_out(name)?;
        let standby = primary.start_standby().unwrap();
        let database = TestDatabase::schema_in(&primary.url("postgres")).await;
        let store = database.store().await;
        let there = database.url().replacen(&primary.url("postgres"), &standby.url("postgres"), 1);
        let scene =
            Self { reading: open(&there, &primary, &standby).await, primary, standby, database, store };
        scene.replayed().await;
        Some(scene)
    }

    /// Waits until the standby has all that the primary has committed.
    async fn replayed(&self) {
        replayed(&self.primary, &self.standby).await;
    }

    /// Has what is settled published, as a worker would.
    fn listen(&self) -> (oneshot::Sender<()>, JoinHandle<()>) {
        let (stop, stopped) = oneshot::channel::<()>();
        let store = self.store.clone();
        (stop, tokio::spawn(async move { store.listen(async { drop(stopped.await) }).await }))
    }
}

async fn open(url: &str, primary: &Cluster, standby: &Cluster) -> Store {
    replayed(primary, standby).await;
    let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
    Store::open(url, &Options::default(), &migrations).await.unwrap()
}

async fn replayed(primary: &Cluster, standby: &Cluster) {
    let mut there = PgConnection::connect(&primary.url("postgres")).await.unwrap();
    let mut here = PgConnection::connect(&standby.url("postgres")).await.unwrap();
    // A commit that was not synced is not sent yet; this one takes it along.
    there.execute("CREATE TABLE IF NOT EXISTS public.flushed (); DROP TABLE public.flushed").await.unwrap();
    let written = "SELECT CAST(pg_current_wal_lsn() AS text)";
    let written: String = sqlx::query_scalar(written).fetch_one(&mut there).await.unwrap();
    let has_all = "SELECT pg_last_wal_replay_lsn() >= CAST($1 AS pg_lsn)";
    while !sqlx::query_scalar::<_, bool>(has_all).bind(&written).fetch_one(&mut here).await.unwrap() {}
}

async fn end(store: &Store) -> Position {
    let sql = "SELECT coalesce(MAX(position), 0) FROM herald_events";
    store.database().fetch_optional::<(Position,)>(sql, ()).await.unwrap().unwrap().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_a_standby_is_read_under_load_without_loss() {
    let Some(scene) = Scene::new("s09_a_standby_is_read_under_load_without_loss").await else { return };
    let (stop, listener) = scene.listen();
    let reader = async |after| {
        let there = end(&scene.store).await;
        loop {
            let read = read(&scene.reading, &Filter::all(), after).await;
            // What is on its way is neither the end nor lost.
            if read.go_on_after > after || after >= there {
                return read;
            }
        }
    };

    let findings = judge(&scene.database, Random::seed(), Wanted::All, reader).await;

    assert_eq!(findings, Findings::default());
    stop.send(()).unwrap();
    listener.await.unwrap();
}

/// Nobody knows there whether position 2 is still to come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_a_standby_proves_nothing() {
    let Some(scene) = Scene::new("s09_a_standby_proves_nothing").await else { return };
    append(&scene.store, "a-1").await;
    let idle = appended_in(&scene.store, "idle-1").await;
    append(&scene.store, "a-1").await;
    scene.replayed().await;
    let filtered = Filter::all().types(["Acme.Test:Happened"]);

    for filter in [Filter::all(), filtered.clone()] {
        let page = scene.reading.read(&filter, Position::START, 10).await.unwrap();
        assert_eq!((positions(&page.events), page.scanned_to), (vec![1], Position(1)));
    }
    let newest = scene.reading.read_backwards(&Filter::all(), None, 10).await.unwrap();
    assert_eq!(positions(&newest.events), [1]);
    assert_eq!(scene.reading.head().await.unwrap(), Head { position: Position(1), is_end: false });
    assert!(scene.reading.explain_head().await.unwrap().is_standby);

    // The primary proves it, and says so.
    idle.rollback().await;
    let proving = scene.database.open().await;
    assert_eq!(proving.head().await.unwrap().position, Position(3));
    proving.close().await;
    scene.replayed().await;
    for filter in [Filter::all(), filtered] {
        let page = scene.reading.read(&filter, Position(1), 10).await.unwrap();
        assert_eq!((positions(&page.events), page.scanned_to), (vec![3], Position(3)));
    }
    assert_eq!(scene.reading.head().await.unwrap(), Head { position: Position(3), is_end: true });
}

/// A standby that crashes may show an earlier state for a while; its time of start stays what it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_a_standby_that_has_crashed_is_known_as_another_run() {
    let Some(scene) = Scene::new("s09_a_standby_that_has_crashed").await else { return };
    let there =
        scene.database.url().replacen(&scene.primary.url("postgres"), &scene.standby.url("postgres"), 1);
    let run = async |connection: &mut PgConnection| -> sqlx::Result<String> {
        sqlx::query_scalar("SELECT run FROM herald_identify_server()").fetch_one(connection).await
    };
    let mut victim = PgConnection::connect(&there).await.unwrap();
    let before = run(&mut victim).await.unwrap();
    assert_eq!(run(&mut PgConnection::connect(&there).await.unwrap()).await.unwrap(), before);
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut victim).await.unwrap();

    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    while victim.execute("SELECT 1").await.is_ok() {}

    let after = loop {
        if let Ok(mut connection) = PgConnection::connect(&there).await
            && let Ok(after) = run(&mut connection).await
        {
            break after;
        }
    };
    assert_ne!(after, before);
}

/// Its readers go on as they are. What was prepared before may still commit, what was only begun may not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_a_standby_is_promoted_in_mid_run() {
    let Some(scene) = Scene::new("s09_a_standby_is_promoted_in_mid_run").await else { return };
    append(&scene.store, "a-1").await;
    let prepared = Prepared::from(appended_in(&scene.store, "prepared-1").await).await;
    let begun = appended_in(&scene.store, "begun-1").await;
    append(&scene.store, "a-1").await;
    scene.replayed().await;
    let mut delivered: Vec<Delivered> = Vec::new();
    let mut after = Position::START;
    let mut go_on = async |delivered: &mut Vec<Delivered>| {
        let read = read(&scene.reading, &Filter::all(), after).await;
        after = read.go_on_after;
        delivered.extend(read.events);
        after
    };
    assert_eq!(go_on(&mut delivered).await, Position(1));

    let mut administrator = PgConnection::connect(&scene.standby.url("postgres")).await.unwrap();
    let promoted: bool =
        sqlx::query_scalar("SELECT pg_promote()").fetch_one(&mut administrator).await.unwrap();
    assert!(promoted);

    // The old primary lives on, with its open transaction; nobody asks it any more.
    let there =
        scene.database.url().replacen(&scene.primary.url("postgres"), &scene.standby.url("postgres"), 1);
    let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
    let appending = Store::open(&there, &Options::default(), &migrations).await.unwrap();
    append(&appending, "a-1").await;
    assert_eq!(go_on(&mut delivered).await, Position(1), "what was prepared may still commit");
    prepared.end(&appending, "COMMIT").await;
    while go_on(&mut delivered).await < end(&appending).await {}

    let table = Table::read(&appending).await.unwrap();
    assert_eq!(table.judge(Wanted::All, &delivered), Findings::default());
    let streams: Vec<&str> = delivered.iter().map(|event| event.stream.as_str()).collect();
    assert_eq!(streams, ["a-1", "prepared-1", "a-1", "a-1"]);
    drop(begun);
}
