//! Appends inside a transaction (S-06), and what becomes of a transaction in which something failed (E-27).

use sqlx::Executor;
use store::{Append, AppendError, Connection, ExpectedVersion, NewEvent, Store, Tx, Version};
use testkit::{TestDatabase, both};

use crate::given::{all_events, event, stream};

fn append(name: &str, expected: ExpectedVersion, events: Vec<NewEvent>) -> Append {
    Append { stream: stream(name), expected, events }
}

async fn streams_of(store: &Store) -> Vec<String> {
    all_events(store).await.into_iter().map(|event| String::from(event.stream)).collect()
}

/// An insert that fails in every database: the table is not there.
async fn fail(tx: &mut Tx) {
    tx.execute("INSERT INTO no_such_table VALUES (1)", ()).await.unwrap_err();
}

both! {
    async fn s06_many_streams_in_one_transaction(database: TestDatabase) {
        let store = database.store().await;
        let two = |name, expected| append(name, expected, vec![event(1), event(2)]);
        let mut tx = store.begin().await.unwrap();
        let appends = vec![
            two("b-1", ExpectedVersion::Any),
            append("c-1", ExpectedVersion::StreamExists, Vec::new()),
            two("a-1", ExpectedVersion::NoStream),
        ];

        let results = store.append_all(&mut tx, appends).await.unwrap();
        tx.commit().await.unwrap();

        // Answered in the order of the call, written in the order of the names.
        let versions: Vec<_> = results.iter().map(|result| result.version).collect();
        assert_eq!(versions, [Some(Version(1)), None, Some(Version(1))]);
        assert!(results[2].position < results[0].position);
        let events = all_events(&store).await;
        assert_eq!(streams_of(&store).await, ["a-1", "a-1", "b-1", "b-1"]);
        assert_eq!(events.last().map(|event| event.position), results[0].position);
    }

    async fn s06_one_wrong_version_undoes_all(database: TestDatabase) {
        let store = database.store().await;
        store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(0)]).await.unwrap();
        let mut tx = store.begin().await.unwrap();
        let appends = vec![
            append("c-1", ExpectedVersion::Any, vec![event(1)]),
            append("a-1", ExpectedVersion::NoStream, vec![event(2)]),
        ];

        let refused = store.append_all(&mut tx, appends).await.unwrap_err();

        assert_eq!(refused.to_string(), "stream a-1 is at version 0 but no stream was expected");
        tx.rollback().await;
        assert_eq!(streams_of(&store).await, ["a-1"]);
    }

    async fn s06_a_swallowed_refusal_cannot_be_committed(database: TestDatabase) {
        let store = database.store().await;
        let used = event(0);
        store.append(&stream("b-1"), ExpectedVersion::Any, vec![used.clone(), event(1)]).await.unwrap();
        for refused in [
            append("b-1", ExpectedVersion::NoStream, vec![event(2)]),
            append("b-1", ExpectedVersion::Any, vec![used]),
        ] {
            let mut tx = store.begin().await.unwrap();
            let fine = |name| append(name, ExpectedVersion::NoStream, vec![event(3)]);
            store.append_all(&mut tx, vec![fine("a-1"), refused, fine("c-1")]).await.unwrap_err();

            let error = tx.commit().await.unwrap_err();

            assert!(error.to_string().contains("an earlier statement in it failed"), "{error}");
            assert_eq!(streams_of(&store).await, ["b-1", "b-1"]);
        }
        // The versions of the streams did not run ahead of their events either.
        for name in ["a-1", "c-1"] {
            let appended = store.append(&stream(name), ExpectedVersion::NoStream, vec![event(4)]).await;
            assert_eq!(appended.unwrap().version, Some(Version(0)));
        }
    }

    async fn s06_a_repeated_append_does_not_keep_its_neighbours_out(database: TestDatabase) {
        let store = database.store().await;
        let known = append("b-1", ExpectedVersion::NoStream, vec![event(1), event(2)]);
        let first = store.append(&known.stream, known.expected, known.events.clone()).await.unwrap();
        let fresh = |name| append(name, ExpectedVersion::NoStream, vec![event(3)]);
        let mut tx = store.begin().await.unwrap();

        let results = store.append_all(&mut tx, vec![fresh("a-1"), known, fresh("c-1")]).await.unwrap();
        tx.commit().await.unwrap();

        assert_eq!(results.iter().map(|result| result.replayed).collect::<Vec<_>>(), [false, true, false]);
        assert_eq!(results[1].position, first.position);
        assert_eq!(streams_of(&store).await, ["b-1", "b-1", "a-1", "c-1"]);
        let events = all_events(&store).await;
        let positions: Vec<_> = events[2..].iter().map(|event| Some(event.position)).collect();
        assert_eq!(positions, [results[0].position, results[2].position]);
    }

    async fn s06_derived_ids_of_a_transaction_are_written_once(database: TestDatabase) {
        let store = database.store().await;
        let derived = |id, number| NewEvent { id: uuid::Uuid::from_u128(id), id_is_derived: true, ..event(number) };
        let first = store.append(&stream("a-1"), ExpectedVersion::Any, vec![derived(1, 1)]).await.unwrap();
        let mut tx = store.begin().await.unwrap();
        let appends = vec![
            append("a-1", ExpectedVersion::Any, vec![derived(1, 10), derived(2, 2)]),
            append("b-1", ExpectedVersion::Any, vec![derived(3, 3)]),
        ];

        store.append_all(&mut tx, appends.clone()).await.unwrap();
        tx.commit().await.unwrap();
        let mut tx = store.begin().await.unwrap();
        let again = store.append_all(&mut tx, appends).await.unwrap();
        tx.commit().await.unwrap();

        let events = all_events(&store).await;
        let payloads: Vec<&str> = events.iter().map(|event| event.payload.as_str()).collect();
        assert_eq!(payloads, ["{\"number\":1}", "{\"number\":2}", "{\"number\":3}"]);
        assert_eq!(Some(events[0].position), first.position);
        assert!(again.iter().all(|result| result.replayed), "{again:?}");
        assert_eq!(again[0].position, Some(events[1].position));
    }

    async fn s06_a_transaction_appends_once(database: TestDatabase) {
        let store = database.store().await;
        let mut tx = store.begin().await.unwrap();
        let one = |name, number| vec![append(name, ExpectedVersion::Any, vec![event(number)])];
        store.append_all(&mut tx, vec![append("a-1", ExpectedVersion::Any, Vec::new())]).await.unwrap();
        store.append_all(&mut tx, one("a-1", 1)).await.unwrap();

        let refused = store.append_all(&mut tx, one("b-1", 2)).await.unwrap_err();

        assert!(matches!(refused, AppendError::SecondAppend), "{refused}");
        tx.rollback().await;
        let mut tx = store.begin().await.unwrap();
        let twice = [one("a-1", 1), one("a-1", 2)].concat();
        let refused = store.append_all(&mut tx, twice).await.unwrap_err();
        assert!(matches!(refused, AppendError::StreamTwice(_)), "{refused}");
        tx.rollback().await;
        assert_eq!(all_events(&store).await.len(), 0);
    }

    async fn s06_opposite_orders_do_not_deadlock(database: TestDatabase) {
        let (store, other) = (database.store().await, database.open().await);
        let round = async |store: &Store, names: [&str; 2], number| {
            let appends = names.map(|name| append(name, ExpectedVersion::Any, vec![event(number), event(number)]));
            let mut tx = store.begin().await.unwrap();
            store.append_all(&mut tx, appends.to_vec()).await.unwrap();
            tx.commit().await.unwrap();
        };
        for number in 0..40 {
            tokio::join!(round(&store, ["a-1", "b-1"], number), round(&other, ["b-1", "a-1"], number));
        }
        assert_eq!(all_events(&store).await.len(), 320);
    }

    async fn e27_a_swallowed_failure_refuses_the_commit(database: TestDatabase) {
        let store = database.store().await;
        let mut tx = store.begin().await.unwrap();
        tx.execute("CREATE TABLE inbox (id BIGINT)", ()).await.unwrap();
        fail(&mut tx).await;

        let appends = vec![append("a-1", ExpectedVersion::Any, vec![event(1)])];
        store.append_all(&mut tx, appends).await.unwrap_err();
        tx.fetch_optional::<(i64,)>("SELECT CAST(1 AS BIGINT)", ()).await.unwrap_err();
        let refused = tx.commit().await.unwrap_err().to_string();

        assert!(refused.contains("no_such_table"), "the first failure is named: {refused}");
        assert_eq!(all_events(&store).await.len(), 0);
        store.database().fetch_all::<(i64,)>("SELECT id FROM inbox", ()).await.unwrap_err();
    }

    async fn e27_a_savepoint_undoes_failures_rows_and_appends(database: TestDatabase) {
        let store = database.store().await;
        let mut tx = store.begin().await.unwrap();
        tx.execute("CREATE TABLE inbox (id BIGINT)", ()).await.unwrap();
        let insert = "INSERT INTO inbox (id) VALUES ($1)";

        let savepoint = tx.savepoint().await.unwrap();
        tx.execute(insert, (1_i64,)).await.unwrap();
        store.append_all(&mut tx, vec![append("a-1", ExpectedVersion::Any, vec![event(1)])]).await.unwrap();
        fail(&mut tx).await;
        tx.roll_back_to(savepoint).await.unwrap();
        let savepoint = tx.savepoint().await.unwrap();
        tx.execute(insert, (2_i64,)).await.unwrap();
        tx.release(savepoint).await.unwrap();
        store.append_all(&mut tx, vec![append("b-1", ExpectedVersion::Any, vec![event(2)])]).await.unwrap();
        tx.commit().await.unwrap();

        let rows = store.database().fetch_all::<(i64,)>("SELECT id FROM inbox", ()).await.unwrap();
        assert_eq!(rows, [(2,)]);
        assert_eq!(streams_of(&store).await, ["b-1"]);
    }

    async fn e27_a_savepoint_inside_another_is_undone_with_it(database: TestDatabase) {
        let store = database.store().await;
        let mut tx = store.begin().await.unwrap();
        tx.execute("CREATE TABLE inbox (id BIGINT)", ()).await.unwrap();
        let insert = "INSERT INTO inbox (id) VALUES ($1)";

        let outer = tx.savepoint().await.unwrap();
        tx.execute(insert, (1_i64,)).await.unwrap();
        let _forgotten = tx.savepoint().await.unwrap();
        tx.execute(insert, (2_i64,)).await.unwrap();
        tx.roll_back_to(outer).await.unwrap();
        tx.commit().await.unwrap();

        assert_eq!(store.database().fetch_all::<(i64,)>("SELECT id FROM inbox", ()).await.unwrap(), []);
    }

    async fn e27_a_dropped_transaction_leaves_nothing(database: TestDatabase) {
        let store = database.store().await;
        let mut tx = store.begin().await.unwrap();
        store.append_all(&mut tx, vec![append("a-1", ExpectedVersion::Any, vec![event(1)])]).await.unwrap();
        drop(tx);

        store.append(&stream("b-1"), ExpectedVersion::NoStream, vec![event(2)]).await.unwrap();

        assert_eq!(streams_of(&store).await, ["b-1"]);
    }
}

/// PostgreSQL answers the COMMIT of a broken transaction with a rollback and calls that a success.
#[tokio::test]
async fn e27_a_failure_past_the_transaction_type_is_not_taken_for_a_commit() {
    let Some(database) = TestDatabase::postgres("e27_a_failure_past_the_transaction_type").await else {
        return;
    };
    let store = database.store().await;
    let mut tx = store.begin().await.unwrap();
    store.append_all(&mut tx, vec![append("a-1", ExpectedVersion::Any, vec![event(1)])]).await.unwrap();
    let Connection::Postgres(connection) = tx.connection() else { unreachable!("this is PostgreSQL") };
    connection.execute("SELECT 1 / 0").await.unwrap_err();

    tx.commit().await.unwrap_err();

    assert_eq!(all_events(&store).await.len(), 0);
}

/// Whoever gives up waiting for a statement must not leave its transaction, and its lock, behind.
#[tokio::test]
async fn e27_a_cancelled_statement_leaves_the_writer_free() {
    let database = TestDatabase::sqlite();
    let store = database.store().await;
    store.database().execute("CREATE TABLE inbox (id BIGINT)", ()).await.unwrap();
    for polls in 1..40 {
        let statement = store.database().execute("INSERT INTO inbox (id) VALUES ($1)", (1_i64,));
        polled(polls, statement).await;

        store.database().execute("INSERT INTO inbox (id) VALUES ($1)", (2_i64,)).await.unwrap();
    }
    database.open().await.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
}

/// Drops the future after it was polled this often.
async fn polled<F: Future>(times: u32, future: F) {
    let mut future = std::pin::pin!(future);
    let mut left = times;
    std::future::poll_fn(|context| {
        left -= 1;
        let done = future.as_mut().poll(context).is_ready();
        if done || left == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
