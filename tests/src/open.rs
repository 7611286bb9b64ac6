//! Opening a log (S-08, S-21, S-22): what is set up, and what is refused.

use store::{
    Durability, ExpectedVersion, MigrateError, Options, Schema, Setup, Store, StoreError, TableName,
};
use testkit::{TestDatabase, both};

use crate::given::{all_events, event, stream};

const ALL: [&[store::Migration]; 2] = [store::MIGRATIONS, subscription_engine::MIGRATIONS];

fn setup() -> Setup {
    Setup { view: TableName::new("acme_notifications_events").unwrap(), test_clock: None }
}

async fn opened_with(database: &TestDatabase, durability: Durability) -> Store {
    Store::open(database.url(), &Options { durability, ..Options::default() }, &ALL).await.unwrap()
}

both! {
    async fn s21_two_may_set_up_at_once(database: TestDatabase) {
        let (one, two) = (database.open().await, database.open().await);
        assert_eq!(one.schema().await.unwrap(), Schema::Missing);
        let setup = setup();

        let (first, second) = tokio::join!(one.set_up(&setup), two.set_up(&setup));

        let ((first, ran), (second, ran_too)) = (first.unwrap(), second.unwrap());
        let migrations: usize = ALL.iter().map(|migrations| migrations.len()).sum();
        assert_eq!((ran.min(ran_too), ran.max(ran_too)), (0, migrations));
        assert_eq!(second.schema().await.unwrap(), Schema::Current);
        assert_eq!(first.identity().await.unwrap(), second.identity().await.unwrap());
        assert!(first.identity().await.unwrap().is_some());
    }

    async fn s21_setting_up_again_changes_nothing(database: TestDatabase) {
        let store = database.store().await;
        store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap();
        let identity = store.identity().await.unwrap();
        // What people built upon our view must neither break nor stand in the way.
        let mine = "CREATE VIEW mine AS SELECT stream FROM acme_notifications_events";
        store.database().execute(mine, ()).await.unwrap();

        let (again, ran) = database.open().await.set_up(&setup()).await.unwrap();

        assert_eq!((ran, again.identity().await.unwrap()), (0, identity));
        assert_eq!(all_events(&again).await.len(), 1);
        let rows = again.database().fetch_all::<(String,)>("SELECT stream FROM mine", ()).await.unwrap();
        assert_eq!(rows, [("a-1".to_owned(),)]);
    }

    async fn s21_a_newer_database_is_refused(database: TestDatabase) {
        let store = database.store().await;
        let insert = "INSERT INTO herald_migrations (number, name) VALUES (999, 'from_the_future')";
        store.database().execute(insert, ()).await.unwrap();

        let store = database.open().await;

        assert_eq!(store.schema().await.unwrap(), Schema::Newer(999));
        let refused = store.set_up(&setup()).await.unwrap_err();
        assert!(matches!(refused, StoreError::Migrate(MigrateError::Newer { database: 999, .. })), "{refused}");
        assert!(refused.to_string().contains("use the newer program"), "{refused}");
    }

    async fn s08_durable_unless_told_otherwise(database: TestDatabase) {
        let setting = if database.is_postgres() {
            "SELECT current_setting('synchronous_commit')"
        } else {
            "SELECT CAST(synchronous AS TEXT) FROM pragma_synchronous"
        };
        for (durability, sqlite, postgres) in
            [(Durability::Full, "2", "on"), (Durability::PowerCutMayLoseCommits, "1", "off")]
        {
            let store = opened_with(&database, durability).await;
            let mut tx = store.begin().await.unwrap();
            let row = tx.fetch_optional::<(String,)>(setting, ()).await.unwrap().unwrap();
            tx.rollback().await;
            assert_eq!(row.0, if database.is_postgres() { postgres } else { sqlite });
        }
    }
}

#[tokio::test]
async fn s08_sqlite_writes_ahead() {
    let database = TestDatabase::sqlite();
    let store = database.store().await;
    let mode = "SELECT journal_mode FROM pragma_journal_mode";
    let row = store.database().fetch_optional::<(String,)>(mode, ()).await.unwrap().unwrap();
    assert_eq!(row.0, "wal");
}

/// Each of these would hand out positions in another order than that of time (PostgreSQL).
#[tokio::test]
async fn s22_a_sequence_that_could_skip_events_is_refused() {
    let Some(database) = TestDatabase::postgres("s22_a_sequence_that_could_skip_events_is_refused").await
    else {
        return;
    };
    let store = database.store().await;
    store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1), event(2), event(3)]).await.unwrap();
    let cases = [
        (
            "ALTER SEQUENCE herald_positions CACHE 32",
            "ALTER SEQUENCE herald_positions CACHE 1",
            "caches 32 numbers",
        ),
        ("ALTER SEQUENCE herald_positions CYCLE", "ALTER SEQUENCE herald_positions NO CYCLE", "cycles"),
        (
            "ALTER SEQUENCE herald_positions INCREMENT 2",
            "ALTER SEQUENCE herald_positions INCREMENT 1",
            "counts in steps of 2",
        ),
        (
            "ALTER SEQUENCE herald_positions RESTART WITH 3",
            "ALTER SEQUENCE herald_positions RESTART WITH 4",
            "is at 2, behind position 3",
        ),
        (
            "ALTER SEQUENCE herald_positions RENAME TO elsewhere",
            "ALTER SEQUENCE elsewhere RENAME TO herald_positions",
            "is missing",
        ),
    ];
    for (harm, mend, words) in cases {
        store.database().execute(harm, ()).await.unwrap();
        let refused = Store::open(database.url(), &Options::default(), &ALL).await.unwrap_err();
        assert!(matches!(refused, StoreError::BadSequence(_)), "{refused}");
        assert!(refused.to_string().contains(words), "{refused}");
        // It can be looked at all the same.
        let looking = Store::open_to_look(database.url(), &Options::default(), &ALL).await.unwrap();
        assert!(looking.refusals()[0].to_string().contains(words));
        store.database().execute(mend, ()).await.unwrap();
        database.open().await;
    }
}
