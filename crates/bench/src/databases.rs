//! The databases that are measured: as durable as in production, and gone afterwards.

use std::env;
use std::sync::Arc;

use bench::{BoxError, DURABLE};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use store::{Options, Setup, Store, TableName};
use tempfile::TempDir;
use testkit::{Cluster, ClusterError};

/// The file of the log, on SQLite.
pub(crate) const LOG: &str = "herald.db";
const GIVEN: &str = "HERALD_BENCH_POSTGRES_URL";

/// A database with room for one log.
pub(crate) enum Bench {
    Sqlite { folder: TempDir },
    Postgres { url: String, schema: String, cluster: Option<Arc<Cluster>> },
}

impl Bench {
    /// SQLite and, where there is one, PostgreSQL.
    pub(crate) async fn both() -> Result<Vec<Self>, BoxError> {
        let mut both = vec![Self::Sqlite { folder: tempfile::tempdir()? }];
        both.extend(Self::postgres().await?);
        Ok(both)
    }

    /// None where there is no PostgreSQL.
    async fn postgres() -> Result<Option<Self>, BoxError> {
        let given = env::var(GIVEN).ok().filter(|url| !url.is_empty());
        let (url, cluster) = match given {
            Some(url) => (url, None),
            None => match Cluster::start_with(&DURABLE) {
                Ok(cluster) => (cluster.url("postgres"), Some(Arc::new(cluster))),
                Err(ClusterError::NoServer(error)) => {
                    eprintln!("PostgreSQL is left out: could not {error}");
                    return Ok(None);
                }
                Err(error) => return Err(error.into()),
            },
        };
        Self::in_schema_of_its_own(url, cluster).await.map(Some)
    }

    /// Another one like this, empty: on the same server.
    pub(crate) async fn another(&self) -> Result<Self, BoxError> {
        match self {
            Self::Sqlite { .. } => Ok(Self::Sqlite { folder: tempfile::tempdir()? }),
            Self::Postgres { url, cluster, .. } => {
                Self::in_schema_of_its_own(url.clone(), cluster.clone()).await
            }
        }
    }

    async fn in_schema_of_its_own(url: String, cluster: Option<Arc<Cluster>>) -> Result<Self, BoxError> {
        let schema = format!("bench_{}", uuid::Uuid::new_v4().simple());
        run(&url, format!("CREATE SCHEMA {schema}")).await?;
        Ok(Self::Postgres { url, schema, cluster })
    }

    /// An empty log.
    pub(crate) async fn store(&self) -> Result<Store, BoxError> {
        let store = open(&self.url(LOG)).await?;
        let (store, _) = store.set_up(&Setup { view: TableName::new("events")?, test_clock: None }).await?;
        Ok(store)
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

    /// Drops what a server keeps after this program.
    pub(crate) async fn clean_up(self) -> Result<(), BoxError> {
        match self {
            Self::Sqlite { folder } => folder.close().map_err(Into::into),
            Self::Postgres { url, schema, .. } => run(&url, format!("DROP SCHEMA {schema} CASCADE")).await,
        }
    }
}

/// Opens what was set up.
pub(crate) async fn open(url: &str) -> Result<Store, BoxError> {
    let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
    Ok(Store::open(url, &Options::default(), &migrations).await?)
}

async fn run(url: &str, sql: String) -> Result<(), BoxError> {
    let mut connection = PgConnection::connect(url).await?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    connection.close().await?;
    Ok(())
}
