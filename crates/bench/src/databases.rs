//! The databases that are measured: as durable as in production, and gone afterwards.

use std::env;

use bench::{BoxError, DURABLE};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use store::{Options, Setup, Store, TableName};
use tempfile::TempDir;
use testkit::{Cluster, ClusterError};

const GIVEN: &str = "HERALD_BENCH_POSTGRES_URL";

/// An empty database with a log in it.
pub(crate) enum Bench {
    Sqlite { folder: TempDir },
    Postgres { url: String, schema: String, _cluster: Option<Cluster> },
}

impl Bench {
    pub(crate) fn sqlite() -> Result<Self, BoxError> {
        Ok(Self::Sqlite { folder: tempfile::tempdir()? })
    }

    /// None where there is no PostgreSQL.
    pub(crate) async fn postgres() -> Result<Option<Self>, BoxError> {
        let given = env::var(GIVEN).ok().filter(|url| !url.is_empty());
        let (url, cluster) = match given {
            Some(url) => (url, None),
            None => match Cluster::start_with(&DURABLE) {
                Ok(cluster) => (cluster.url("postgres"), Some(cluster)),
                Err(ClusterError::NoServer(error)) => {
                    eprintln!("PostgreSQL is left out: could not {error}");
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            },
        };
        let schema = format!("bench_{}", uuid::Uuid::new_v4().simple());
        run(&url, format!("CREATE SCHEMA {schema}")).await?;
        Ok(Some(Self::Postgres { url, schema, _cluster: cluster }))
    }

    /// What the table calls it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "SQLite",
            Self::Postgres { .. } => "PostgreSQL",
        }
    }

    /// Where the log is; on SQLite a file of this name.
    pub(crate) fn url(&self, file: &str) -> String {
        match self {
            Self::Sqlite { folder } => format!("sqlite:{}", folder.path().join(file).display()),
            Self::Postgres { url, schema, .. } => {
                let separator = if url.contains('?') { '&' } else { '?' };
                format!("{url}{separator}options=-csearch_path%3D{schema}")
            }
        }
    }

    pub(crate) async fn store(&self) -> Result<Store, BoxError> {
        let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
        let store = Store::open(&self.url("herald.db"), &Options::default(), &migrations).await?;
        let (store, _) = store.set_up(&Setup { view: TableName::new("events")?, test_clock: None }).await?;
        Ok(store)
    }

    /// Drops what a server keeps after this program.
    pub(crate) async fn clean_up(self) -> Result<(), BoxError> {
        match self {
            Self::Sqlite { folder } => folder.close().map_err(Into::into),
            Self::Postgres { url, schema, .. } => run(&url, format!("DROP SCHEMA {schema} CASCADE")).await,
        }
    }
}

async fn run(url: &str, sql: String) -> Result<(), BoxError> {
    let mut connection = PgConnection::connect(url).await?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    connection.close().await?;
    Ok(())
}
