//! A role that may call the functions and read, and nothing else (S-09): it cannot do what breaks the order.

use sqlx::{AssertSqlSafe, Connection as _, Executor, PgConnection};
use store::{Filter, Head, HolderKind, Options, Position, Store};
use testkit::TestDatabase;

use super::{append, appended_in, positions};

/// The functions that append, and the one that publishes what was proven.
const APPENDS: &str = "herald_append_one, herald_append";
const PUBLISHES: &str = "herald_publish_head";

/// A role, and a store that is opened by it.
struct Role {
    name: String,
    url: String,
    owner: PgConnection,
}

impl Role {
    async fn new(database: &TestDatabase, functions: &[&str]) -> Self {
        let name = format!("app_{}", uuid::Uuid::new_v4().simple());
        let mut owner = PgConnection::connect(database.url()).await.unwrap();
        let schema: String =
            sqlx::query_scalar("SELECT current_schema()::text").fetch_one(&mut owner).await.unwrap();
        let functions = functions.join(", ");
        let grants = format!(
            "CREATE ROLE {name} LOGIN;
             GRANT USAGE ON SCHEMA {schema} TO {name};
             GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {name};
             GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {name};
             GRANT EXECUTE ON FUNCTION {functions} TO {name}"
        );
        owner.execute(sqlx::raw_sql(AssertSqlSafe(grants))).await.unwrap();
        let url = database.url().replacen("postgres://postgres@", &format!("postgres://{name}@"), 1);
        assert_ne!(url, database.url());
        Self { name, url, owner }
    }

    async fn store(&self) -> Store {
        let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
        Store::open(&self.url, &Options::default(), &migrations).await.unwrap()
    }

    /// What the server says to this statement.
    async fn is_refused(&self, statement: &'static str) -> String {
        let mut connection = PgConnection::connect(&self.url).await.unwrap();
        connection
            .execute(statement)
            .await
            .unwrap_err()
            .as_database_error()
            .unwrap()
            .code()
            .unwrap()
            .into_owned()
    }

    async fn drop(mut self) {
        let drop = format!("DROP OWNED BY {0}; DROP ROLE {0}", self.name);
        self.owner.execute(sqlx::raw_sql(AssertSqlSafe(drop))).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_a_role_with_the_functions_appends_reads_proves_and_publishes_and_can_do_no_harm() {
    let Some(database) = TestDatabase::postgres("s09_a_role_with_the_functions").await else { return };
    let admin = database.store().await;
    let role = Role::new(&database, &[APPENDS, PUBLISHES]).await;
    let store = role.store().await;

    append(&store, "a-1").await;
    appended_in(&store, "gone-1").await.rollback().await;
    append(&store, "a-1").await;
    let page = store.read(&Filter::all(), Position(1), 10).await.unwrap();
    assert_eq!(positions(&page.events), [3]);
    store.close().await;

    let report = admin.explain_head().await.unwrap();
    assert_eq!(report.published.unwrap().position, Position(3));
    assert_eq!((report.dead_ranges, report.dead_positions), (1, 1));
    for forbidden in [
        "SELECT nextval('herald_positions')",
        "SELECT setval('herald_positions', 1)",
        "INSERT INTO herald_events SELECT * FROM herald_events",
        "UPDATE herald_events SET position = 2",
        "DELETE FROM herald_events",
        "TRUNCATE herald_events",
        "UPDATE herald_streams SET version = 0",
        "INSERT INTO herald_dead_ranges VALUES (3, 3, now())",
        "UPDATE herald_safe_head SET position = 99",
        "INSERT INTO herald_server_run VALUES (1, gen_random_uuid())",
        "ALTER TABLE herald_events DISABLE TRIGGER ALL",
    ] {
        assert_eq!(role.is_refused(forbidden).await, "42501", "{forbidden}");
    }
    role.drop().await;
}

/// Without the right to publish it reads as safely; others have to prove again what it has proven.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_a_role_that_may_not_publish_reads_all_the_same() {
    let Some(database) = TestDatabase::postgres("s09_a_role_that_may_not_publish").await else { return };
    let admin = database.store().await;
    let role = Role::new(&database, &[APPENDS]).await;
    let store = role.store().await;
    appended_in(&store, "gone-1").await.rollback().await;
    append(&store, "a-1").await;

    assert_eq!(positions(&store.read(&Filter::all(), Position::START, 10).await.unwrap().events), [2]);

    store.close().await;
    let sql = "SELECT position FROM herald_safe_head";
    assert_eq!(admin.database().fetch_optional::<(i64,)>(sql, ()).await.unwrap(), Some((0,)));
    assert_eq!(admin.head().await.unwrap(), Head { position: Position(2), is_end: true });
    role.drop().await;
}

/// It sees who holds the lock, not what others do: enough to wait for them, and to name them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_a_role_without_monitoring_rights_reads_and_names_the_blocker() {
    let Some(database) = TestDatabase::postgres("s10_a_role_without_monitoring_rights").await else { return };
    let admin = database.store().await;
    let role = Role::new(&database, &[APPENDS]).await;
    let store = role.store().await;
    append(&store, "a-1").await;
    let mut idle = appended_in(&admin, "idle-1").await;
    let pid = idle.fetch_optional::<(i32,)>("SELECT pg_backend_pid()", ()).await.unwrap().unwrap().0;
    append(&store, "a-1").await;

    let report = store.explain_head().await.unwrap();

    let [holder] = report.holders.as_slice() else { panic!("{report:?}") };
    assert_eq!((report.position, report.end, report.events_waiting), (Position(1), Position(3), 1));
    assert_eq!(holder.age, None);
    let application = Some("herald".to_owned());
    let user = Some("postgres".to_owned());
    let hidden = HolderKind::Session { pid, application, user, client: None, state: None, query: None };
    assert_eq!(holder.kind, hidden);
    idle.commit().await.unwrap();
    assert_eq!(positions(&store.read(&Filter::all(), Position(1), 10).await.unwrap().events), [2, 3]);
    store.close().await;
    role.drop().await;
}
