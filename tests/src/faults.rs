//! What goes wrong outside (S-26, S-27): one clear sentence each, the right kind of fault, and nothing lost.

use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, Executor, PgConnection, SqliteConnection};
use store::{Append, AppendError, ExpectedVersion, Fault, Options, Setup, Store, StoreError, TableName};
use testkit::{Cluster, TestDatabase, both};
use tokio::time::timeout;

use crate::given::{all_events, event, stream};

/// An append that has not come back after this time waits for something.
const A_WHILE: Duration = Duration::from_millis(200);

async fn open(url: &str) -> Result<Store, StoreError> {
    Store::open(url, &Options::default(), &[store::MIGRATIONS]).await
}

async fn append(store: &Store) -> Result<(), AppendError> {
    store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.map(drop)
}

/// The whole sentence, as a program would print it, and what it means.
#[track_caller]
fn told(error: impl Error + 'static) -> (Fault, String) {
    let mut sentence = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        sentence = format!("{sentence}: {error}");
        source = error.source();
    }
    assert!(!sentence.contains('\n'), "{sentence}");
    (Fault::of(&error), sentence)
}

/// A server that lets its owner in and asks everybody else for a password; the user `clerk` has one.
pub(crate) async fn cluster_with_a_clerk() -> (Cluster, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    // The server runs as another user, who reads this file.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let rules = folder.path().join("pg_hba.conf");
    fs::write(&rules, "host all postgres all trust\nhost all all all scram-sha-256\n").unwrap();
    let cluster = Cluster::start_with(&[&format!("hba_file={}", rules.display())]).unwrap();
    let mut owner = PgConnection::connect(&cluster.url("postgres")).await.unwrap();
    owner.execute("CREATE ROLE clerk LOGIN PASSWORD 'right'").await.unwrap();
    (cluster, folder)
}

#[tokio::test]
async fn s27_a_wrong_password_is_not_allowed() {
    let name = "s27_a_wrong_password_is_not_allowed";
    let Some(_) = testkit::postgres_or_left_out(name) else { return };
    let (cluster, _rules) = cluster_with_a_clerk().await;
    let url = |login: &str| cluster.url("postgres").replacen("postgres@", login, 1);

    let (fault, sentence) = told(open(&url("clerk:wr0ng@")).await.unwrap_err());

    assert_eq!(fault, Fault::NotAllowed, "{sentence}");
    assert!(sentence.starts_with("could not connect to 127.0.0.1:"), "{sentence}");
    assert!(sentence.contains("password authentication failed for user \"clerk\""), "{sentence}");
    assert!(!sentence.contains("wr0ng"), "{sentence}");
    // The right one gets in, and lacks the right to make tables.
    let store = open(&url("clerk:right@")).await.unwrap();
    let view = TableName::new("events").unwrap();
    let (fault, sentence) = told(store.set_up(&Setup { view, test_clock: None }).await.unwrap_err());
    assert_eq!(fault, Fault::NotAllowed, "{sentence}");
}

#[tokio::test]
async fn s27_where_nobody_answers_is_unreachable() {
    // Free a moment ago, and in a range that is not given out to others by itself.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);

    let error = timeout(Duration::from_secs(10), open(&format!("postgres://somebody@{address}/db"))).await;

    let (fault, sentence) = told(error.expect("it does not wait for a server to appear").unwrap_err());
    assert_eq!(fault, Fault::Unreachable, "{sentence}");
    assert!(sentence.starts_with(&format!("could not connect to {address}")), "{sentence}");
}

#[tokio::test]
async fn s27_a_database_or_schema_that_is_not_there() {
    let Some(url) = testkit::postgres_or_left_out("s27_a_database_or_schema_that_is_not_there") else {
        return;
    };
    let (server, _) = url.rsplit_once('/').unwrap();
    let (fault, sentence) = told(open(&format!("{server}/nowhere")).await.unwrap_err());
    assert_eq!(fault, Fault::NoSuchDatabase, "{sentence}");
    assert!(sentence.contains("database \"nowhere\" does not exist"), "{sentence}");

    let store = open(&format!("{url}?options=-csearch_path%3Dnowhere")).await.unwrap();
    let view = TableName::new("events").unwrap();
    let (fault, sentence) = told(store.set_up(&Setup { view, test_clock: None }).await.unwrap_err());
    assert_eq!(fault, Fault::NoSuchDatabase, "{sentence}");
}

#[tokio::test]
async fn s27_a_file_that_is_no_database_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("letter.txt");
    let text = "Dear reader, this is a letter and no database. ".repeat(100);
    fs::write(&file, &text).unwrap();

    let (fault, sentence) = told(open(&format!("sqlite:{}", file.display())).await.unwrap_err());

    assert_eq!(fault, Fault::Damaged, "{sentence}");
    assert!(sentence.contains("letter.txt") && sentence.contains("not a database"), "{sentence}");
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[tokio::test]
async fn s27_a_file_that_is_missing_or_cannot_be_made() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.db");
    let options = Options { create: false, ..Options::default() };
    let error = Store::open(&format!("sqlite:{}", missing.display()), &options, &[store::MIGRATIONS]).await;
    let (fault, sentence) = told(error.unwrap_err());
    assert_eq!(fault, Fault::NoSuchDatabase, "{sentence}");
    assert_eq!(sentence, format!("there is no database file {}", missing.display()));
    assert!(!missing.exists());

    fs::write(folder.path().join("file"), "").unwrap();
    let below = folder.path().join("file/below.db");
    let (fault, sentence) = told(open(&format!("sqlite:{}", below.display())).await.unwrap_err());
    assert_eq!(fault, Fault::ReadOnly, "{sentence}");
    assert!(sentence.starts_with("could not open or create the database file "), "{sentence}");

    for url in ["mysql://localhost/db", "herald.db", "sqlite:x.db?mode=sideways"] {
        let (fault, sentence) = told(open(url).await.unwrap_err());
        assert_eq!(fault, Fault::Other, "{sentence}");
        assert!(sentence.contains("not a database URL"), "{sentence}");
    }
}

#[tokio::test]
async fn s27_a_file_opened_for_reading_can_be_read_only() {
    let database = TestDatabase::sqlite();
    append(&database.store().await).await.unwrap();
    let store = open(&format!("{}?mode=ro", database.url())).await.unwrap();

    let (fault, sentence) = told(append(&store).await.unwrap_err());

    assert_eq!(fault, Fault::ReadOnly, "{sentence}");
    assert!(sentence.contains("readonly database"), "{sentence}");
    assert_eq!(all_events(&store).await.len(), 1);
}

#[tokio::test]
async fn s27_a_transaction_for_reading_can_only_read() {
    let Some(database) = TestDatabase::postgres("s27_a_transaction_for_reading_can_only_read").await else {
        return;
    };
    let store = database.store().await;
    let mut tx = store.begin().await.unwrap();
    tx.execute("SET TRANSACTION READ ONLY", ()).await.unwrap();
    let append = Append { stream: stream("a-1"), expected: ExpectedVersion::Any, events: vec![event(1)] };

    let (fault, sentence) = told(store.append_all(&mut tx, vec![append]).await.unwrap_err());

    assert_eq!(fault, Fault::ReadOnly, "{sentence}");
    tx.rollback().await;
}

#[tokio::test]
async fn s27_an_append_waits_for_a_file_that_another_process_has_locked() {
    let database = TestDatabase::sqlite();
    let store = database.store().await;
    let mut other = SqliteConnection::connect(database.url()).await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let mut appending = Box::pin(append(&store));
    assert!(timeout(A_WHILE, &mut appending).await.is_err());

    other.execute("COMMIT").await.unwrap();

    appending.await.unwrap();
    assert_eq!(all_events(&store).await.len(), 1);
}

#[tokio::test]
async fn s27_a_full_disk_loses_nothing_and_heals() {
    let database = TestDatabase::sqlite();
    let store = database.store().await;
    append(&store).await.unwrap();
    let append_in_a_transaction = async || {
        let events = vec![event(1)];
        let append = Append { stream: stream("a-1"), expected: ExpectedVersion::Any, events };
        let mut tx = store.begin().await.unwrap();
        match store.append_all(&mut tx, vec![append]).await {
            Ok(_) => tx.commit().await.map_err(AppendError::from),
            Err(error) => {
                tx.rollback().await;
                Err(error)
            }
        }
    };
    // SQLite's own limit answers as a full disk does.
    let limit = async |pages: &str| {
        let Some((now,)): Option<(i64,)> =
            store.database().fetch_optional("SELECT page_count FROM pragma_page_count", ()).await.unwrap()
        else {
            unreachable!("a file has pages")
        };
        let mut tx = store.begin().await.unwrap();
        let store::Connection::Sqlite(writer) = tx.connection() else { unreachable!("this is SQLite") };
        let pragma =
            if pages == "none more" { format!("PRAGMA max_page_count = {now}") } else { pages.to_owned() };
        writer.execute(sqlx::raw_sql(AssertSqlSafe(pragma))).await.unwrap();
        tx.commit().await.unwrap();
    };
    limit("none more").await;
    let error = loop {
        if let Err(error) = append_in_a_transaction().await {
            break error;
        }
    };
    let before = all_events(&store).await.len();

    let (fault, sentence) = told(error);
    assert_eq!(fault, Fault::Transient, "{sentence}");
    assert!(sentence.contains("disk is full"), "{sentence}");
    limit("PRAGMA max_page_count = 1000000").await;
    append_in_a_transaction().await.unwrap();
    append(&store).await.unwrap();
    assert_eq!(all_events(&store).await.len(), before + 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s26_a_session_that_is_ended_in_mid_append_leaves_the_outcome_open() {
    let Some(database) = TestDatabase::postgres("s26_a_session_that_is_ended_in_mid_append").await else {
        return;
    };
    let store = database.store().await;
    append(&store).await.unwrap();
    let mut other = PgConnection::connect(database.url()).await.unwrap();
    let mut row = other.begin().await.unwrap();
    row.execute("SELECT FROM herald_streams WHERE stream = 'a-1' FOR UPDATE").await.unwrap();
    let events = vec![event(1), event(2)];
    let appending = tokio::spawn({
        let (store, events) = (store.clone(), events.clone());
        async move { store.append(&stream("a-1"), ExpectedVersion::Any, events).await }
    });
    let end_whoever_waits = "SELECT CAST(count(pg_terminate_backend(pid)) AS BIGINT) FROM pg_locks
                              WHERE NOT granted AND locktype = 'transactionid'
                                AND transactionid = pg_current_xact_id()::xid";
    while sqlx::query_scalar::<_, i64>(end_whoever_waits).fetch_one(&mut *row).await.unwrap() == 0 {}

    let error = appending.await.unwrap().unwrap_err();

    assert!(matches!(error, AppendError::OutcomeUnknown(_)), "{error}");
    let (fault, sentence) = told(error);
    assert_eq!(fault, Fault::Transient, "{sentence}");
    assert!(sentence.contains("repeat it with the same event ids"), "{sentence}");
    row.rollback().await.unwrap();
    let repeated = store.append(&stream("a-1"), ExpectedVersion::Any, events).await.unwrap();
    assert!(!repeated.replayed);
    assert_eq!(all_events(&store).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s26_appends_through_a_crash_of_the_server_are_in_the_log_once() {
    let Some(cluster) = testkit::own_postgres_or_left_out("s26_appends_through_a_crash_of_the_server") else {
        return;
    };
    let database = TestDatabase::schema_in(&cluster.url("postgres")).await;
    let store = database.store().await;
    append(&store).await.unwrap();
    let (count, mut counted) = tokio::sync::watch::channel(0_u32);
    let appending = tokio::spawn({
        let store = store.clone();
        async move {
            let mut failures = 0;
            while failures == 0 || *count.borrow() < 100 {
                let events = vec![event(1), event(2)];
                loop {
                    match store.append(&stream("b-1"), ExpectedVersion::Any, events.clone()).await {
                        Ok(_) => break,
                        Err(error) => {
                            let (fault, sentence) = told(error);
                            assert!(matches!(fault, Fault::Transient | Fault::Unreachable), "{sentence}");
                            failures += 1;
                        }
                    }
                }
                count.send_modify(|count| *count += 1);
            }
            *count.borrow()
        }
    });
    counted.wait_for(|count| *count >= 20).await.unwrap();

    let restarted = tokio::task::spawn_blocking(move || cluster.restart_immediate().map(|()| cluster));
    let _cluster = restarted.await.unwrap().unwrap();

    let appends = timeout(Duration::from_secs(60), appending).await.expect("it heals").unwrap();
    let events = all_events(&store).await;
    let versions: Vec<i64> =
        events.iter().filter(|event| event.stream == stream("b-1")).map(|event| event.version.0).collect();
    assert_eq!(versions, (0..i64::from(appends) * 2).collect::<Vec<_>>());
}

both! {
    async fn s27_when_every_connection_is_in_use_that_is_said_and_nothing_is_lost(database: TestDatabase) {
        database.store().await;
        let options = Options { connections: 2, ..Options::default() };
        let store = Store::open(database.url(), &options, &[store::MIGRATIONS]).await.unwrap();
        let mut holding = vec![store.begin().await.unwrap()];
        if database.is_postgres() {
            holding.push(store.begin().await.unwrap());
        }

        let error = append(&store).await.unwrap_err();

        let sentence = store::messages(&error).join(": ");
        assert_eq!(Fault::of(&error), Fault::Transient, "{sentence}");
        assert!(sentence.contains("no connection became free"), "{sentence}");
        for tx in holding {
            tx.rollback().await;
        }
        append(&store).await.unwrap();
        assert_eq!(all_events(&store).await.len(), 1);
    }
}
