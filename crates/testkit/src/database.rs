//! A database for each test: a new SQLite file, or a new schema in the shared PostgreSQL cluster.

use sqlx::{Connection, PgConnection};
use store::{Options, Setup, Store, TableName, Timestamp};
use tempfile::TempDir;

use crate::shared::postgres_or_left_out;

/// An empty database that belongs to one test.
#[derive(Debug)]
pub struct TestDatabase {
    url: String,
    /// Goes away with the test.
    _folder: Option<TempDir>,
}

/// The time at which tests with a manual clock begin: 2026-01-01T00:00:00Z.
pub const T0: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

impl TestDatabase {
    /// A new SQLite file.
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let url = format!("sqlite:{}", folder.path().join("herald.db").display());
        Self { url, _folder: Some(folder) }
    }

    /// A new schema in the shared cluster; none where PostgreSQL had to be left out, which was said aloud.
    pub async fn postgres(test_name: &str) -> Option<Self> {
        let cluster = postgres_or_left_out(test_name)?;
        Some(Self::schema_in(cluster).await)
    }

    /// A new schema in the database at this URL.
    pub async fn schema_in(url: &str) -> Self {
        let schema = format!("t_{}", uuid::Uuid::new_v4().simple());
        let mut connection = PgConnection::connect(url).await.expect("the cluster is up");
        let create = sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}"));
        sqlx::raw_sql(create).execute(&mut connection).await.expect("a schema can be made");
        connection.close().await.expect("the cluster is up");
        Self { url: format!("{url}?options=-csearch_path%3D{schema}"), _folder: None }
    }

    /// The database at this URL, which the caller keeps and cleans up.
    pub fn at(url: &str) -> Self {
        Self { url: url.to_owned(), _folder: None }
    }

    /// Where it is, as the program takes it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether this is PostgreSQL.
    pub fn is_postgres(&self) -> bool {
        self.url.starts_with("postgres")
    }

    /// A handle of its own to the log, which is set up if it is not yet. Call it again for what another
    /// process would see.
    pub async fn store(&self) -> Store {
        self.set_up(None).await
    }

    /// As [`TestDatabase::store`], with a manual clock that stands at [`T0`].
    pub async fn store_with_manual_clock(&self) -> Store {
        self.set_up(Some(T0)).await
    }

    /// A handle to whatever is there; nothing is set up.
    pub async fn open(&self) -> Store {
        let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
        Store::open(&self.url, &Options::default(), &migrations).await.expect("the database is there")
    }

    async fn set_up(&self, test_clock: Option<Timestamp>) -> Store {
        let view = TableName::new("acme_notifications_events").expect("a table name");
        let (store, _) =
            self.open().await.set_up(&Setup { view, test_clock }).await.expect("it can be set up");
        store
    }
}

/// Tells one story on both databases: a test named `sqlite` and one named `postgres` in a module named
/// after the story.
///
/// ```text
/// both! {
///     /// S-04: all of its events or none.
///     async fn s04_append_is_whole(database: TestDatabase) { … }
/// }
/// ```
#[macro_export]
macro_rules! both {
    ($($(#[$meta:meta])* async fn $name:ident($database:ident: TestDatabase) $story:block)+) => {
        $(
            $(#[$meta])*
            mod $name {
                #[allow(unused_imports, reason = "not every story needs what its neighbours import")]
                use super::*;

                async fn story($database: $crate::TestDatabase) $story

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn sqlite() {
                    story($crate::TestDatabase::sqlite()).await;
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn postgres() {
                    let name = concat!(module_path!(), "::postgres");
                    if let Some(database) = $crate::TestDatabase::postgres(name).await {
                        story(database).await;
                    }
                }
            }
        )+
    };
}
