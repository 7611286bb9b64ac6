//! The two databases: connecting, and what each statement runs on.
//!
//! SQLite gets one connection for writing, on which the tasks of this process queue in fair order, and a
//! few read-only ones. PostgreSQL gets one pool. This file and its neighbours in this crate are the only
//! ones that may ask which of the two it is; everybody else writes portable SQL.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::Either;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgSslMode};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, Executor};

use crate::connection::{Connection, SQLITE_BUSY_TIMEOUT};
use crate::lifeline::Lifeline;
use crate::safe_head::{Known, identify};
use crate::sql::Sql;
use crate::sqlite_thread::{SqliteThreads, Writes};
use crate::tx::Tx;
use crate::values::{Record, Values};
use crate::wake::Signal;

/// SQLite's own waiting grows to 100 ms between two looks and would miss the short times in which a busy
/// process lets go. So a writer looks for this long, and then again, until [`SQLITE_BUSY_TIMEOUT`] is over.
pub(crate) const SQLITE_WRITER_LOOK: Duration = Duration::from_millis(3);
/// Read-only connections to one SQLite file: pages are read beside the writer, and more do not read faster.
const SQLITE_READERS: u32 = 4;
/// How long a task waits for a connection of its pool before it gives up.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a server may take to answer the first time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A pooled connection that was used this recently is taken as alive.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);
/// How long connections that are in use may hold up the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);
/// How long one that was not may take to say that it is alive.
const PING_LIMIT: Duration = Duration::from_secs(2);
/// A session that holds the append lock and goes silent is ended by the server after this time.
const IDLE_IN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(35);

/// A server that hears nothing from a program whose machine or network has vanished asks after this time …
const SERVER_KEEPALIVE_IDLE: Duration = Duration::from_secs(3);
/// … and again after this …
const SERVER_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// … and so many times in vain; then the session ends, and with it the claims that it held, within ten seconds.
const SERVER_KEEPALIVE_COUNT: u32 = 2;
/// The same for an answer that nobody acknowledges.
const SERVER_USER_TIMEOUT: Duration = Duration::from_secs(7);

/// Which of the two databases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    /// An embedded file.
    Sqlite,
    /// A server.
    Postgres,
}

impl DatabaseKind {
    /// The database's own clock as an expression.
    pub(crate) fn now(self) -> &'static str {
        match self {
            Self::Sqlite => "strftime('%Y-%m-%d %H:%M:%f000', 'now')",
            Self::Postgres => "clock_timestamp()",
        }
    }
}

/// What an acknowledged append survives (S-08).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Everything: SQLite syncs each commit; PostgreSQL does what its server is set to.
    #[default]
    Full,
    /// Only a crash of the program: a power cut may lose the last commits, never their order.
    PowerCutMayLoseCommits,
}

/// How to connect.
#[derive(Clone, Debug)]
pub struct Options {
    /// What an acknowledged append survives.
    pub durability: Durability,
    /// Whether a missing SQLite file is created.
    pub create: bool,
    /// Connections to PostgreSQL.
    pub connections: u32,
    /// The password, if it is not in the URL.
    pub password: Option<Secret>,
}

/// Text that must not be shown.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Keeps the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for whoever has to show it to the other side.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<redacted>")
    }
}

/// Where a database is, for people; without secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The host, for a server.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<u16>,
    /// The database's name, or the file.
    pub database: String,
    /// The user, for a server.
    pub user: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { durability: Durability::Full, create: true, connections: 16, password: None }
    }
}

/// A connected database. Clones share their connections.
#[derive(Clone, Debug)]
pub enum Database {
    /// An embedded file with one writer.
    Sqlite {
        /// The one connection that writes.
        writer: SqlitePool,
        /// Connections that only read.
        readers: SqlitePool,
        /// Connections on threads of their own, for whole pages and whole groups of appends.
        threads: Arc<SqliteThreads>,
        /// The file.
        file: PathBuf,
    },
    /// A server.
    Postgres {
        /// Its connections.
        pool: PgPool,
        /// How far the log there is settled, as far as this process knows.
        known: Arc<Known>,
        /// Whether it is there, for those who wait for its answer.
        lifeline: Arc<Lifeline>,
    },
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL is neither of SQLite nor of PostgreSQL, or malformed.
    #[error("not a database URL: {reason}; write sqlite:FILE or postgres://USER@HOST/DATABASE")]
    InvalidUrl {
        /// What is wrong with it, without the URL: it may hold a password.
        reason: String,
    },
    /// There is no such file, and it was not to be created.
    #[error("there is no database file {}", .0.display())]
    NoSuchFile(PathBuf),
    /// The file or its folder cannot be reached or created.
    #[error("could not open or create the database file {}", .0.display())]
    CannotCreate(PathBuf, #[source] std::io::Error),
    /// The database answered, or could not be reached.
    #[error("could not connect to {target}")]
    Refused {
        /// Where to, without secrets.
        target: String,
        /// What it said.
        #[source]
        source: sqlx::Error,
    },
}

impl Database {
    /// Connects to `sqlite:FILE` or `postgres://…`.
    ///
    /// A new SQLite file gets mode 0600, its folder 0700: the log holds what people were told.
    pub async fn connect(url: &str, options: &Options) -> Result<Self, ConnectError> {
        match Address::parse(url)? {
            Address::Postgres(connect) => Self::connect_postgres(*connect, options).await,
            Address::Sqlite(connect) => Self::connect_sqlite(*connect, options).await,
        }
    }

    /// Says what is wrong with a URL, if anything is, without connecting.
    pub fn check_url(url: &str) -> Result<(), ConnectError> {
        Address::parse(url).map(drop)
    }

    async fn connect_postgres(connect: PgConnectOptions, options: &Options) -> Result<Self, ConnectError> {
        let idle_limit = format!("{}ms", IDLE_IN_TRANSACTION_TIMEOUT.as_millis());
        let keepalive_idle = SERVER_KEEPALIVE_IDLE.as_secs().to_string();
        let keepalive_interval = SERVER_KEEPALIVE_INTERVAL.as_secs().to_string();
        let keepalive_count = SERVER_KEEPALIVE_COUNT.to_string();
        let user_timeout = SERVER_USER_TIMEOUT.as_millis().to_string();
        let mut connect = connect.application_name("herald").options([
            ("idle_in_transaction_session_timeout", idle_limit.as_str()),
            // The server knows by itself that they mean nothing on a Unix socket.
            ("tcp_keepalives_idle", &keepalive_idle),
            ("tcp_keepalives_interval", &keepalive_interval),
            ("tcp_keepalives_count", &keepalive_count),
            ("tcp_user_timeout", &user_timeout),
            // Each statement must see what was committed before it: the proof of safe_head.rs needs it.
            ("default_transaction_isolation", "read committed"),
            ("default_transaction_read_only", "off"),
        ]);
        if let Some(Secret(password)) = &options.password {
            connect = connect.password(password);
        }
        if options.durability == Durability::PowerCutMayLoseCommits {
            connect = connect.options([("synchronous_commit", "off")]);
        }
        let target = format!("{}:{}", connect.get_host(), connect.get_port());
        // The pool would repeat a refused connection until its time is up; the first one fails at once.
        let refused = |source| ConnectError::Refused { target, source };
        let first = tokio::time::timeout(CONNECT_TIMEOUT, connect.clone().connect()).await;
        let silent = || sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer"));
        let identified = async {
            let mut first = first.map_err(|_| silent()).and_then(|first| first)?;
            let known = Known::default();
            identify(&mut first, &known).await?;
            let _ = first.close().await;
            Ok(known)
        };
        let identified = tokio::time::timeout(CONNECT_TIMEOUT, identified).await;
        let known = Arc::new(identified.unwrap_or_else(|_| Err(silent())).map_err(refused)?);
        let connect = connect.disable_statement_logging();
        let lifeline = Arc::new(Lifeline::new(connect.clone(), Arc::clone(&known)));
        let (of_connections, of_uses) = (Arc::clone(&known), Arc::clone(&known));
        let of_releases = Arc::clone(&known);
        let (before_uses, after_uses) = (Arc::clone(&lifeline), Arc::clone(&lifeline));
        let pool = PgPoolOptions::new()
            .max_connections(options.connections)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A round trip before each use would cost a third of an append; only long-idle ones are asked.
            .test_before_acquire(false)
            .before_acquire(move |connection, state| {
                let may_be_used =
                    !of_uses.is_from_before(state.age) && !before_uses.is_from_before(state.age);
                Box::pin(async move {
                    if !may_be_used || state.idle_for < TRUSTED_IDLE {
                        return Ok(may_be_used);
                    }
                    Ok(matches!(tokio::time::timeout(PING_LIMIT, connection.ping()).await, Ok(Ok(()))))
                })
            })
            .after_release(move |_, state| {
                // Or the pool would wait for a server that has vanished before it has room for a new one.
                let may_be_used =
                    !of_releases.is_from_before(state.age) && !after_uses.is_from_before(state.age);
                Box::pin(async move { Ok(may_be_used) })
            })
            .after_connect(move |connection, _| {
                let known = Arc::clone(&of_connections);
                Box::pin(async move { identify(connection, &known).await })
            })
            .connect_lazy_with(connect);
        Ok(Self::Postgres { pool, known, lifeline })
    }

    async fn connect_sqlite(connect: SqliteConnectOptions, options: &Options) -> Result<Self, ConnectError> {
        let file = connect.get_filename().to_owned();
        let cannot = |error| ConnectError::CannotCreate(file.clone(), error);
        if !file.try_exists().map_err(cannot)? {
            if !options.create {
                return Err(ConnectError::NoSuchFile(file));
            }
            create_private(&file).map_err(cannot)?;
        }
        let (synchronous, writer_pragmas) = match options.durability {
            Durability::Full => {
                (SqliteSynchronous::Full, "PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON")
            }
            Durability::PowerCutMayLoseCommits => {
                (SqliteSynchronous::Normal, "PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON")
            }
        };
        let connect = connect
            .disable_statement_logging()
            .busy_timeout(SQLITE_BUSY_TIMEOUT)
            .synchronous(synchronous)
            .foreign_keys(true)
            .optimize_on_close(false, None);
        let is_read_only =
            connect.to_url_lossy().query_pairs().any(|(key, value)| key == "mode" && value == "ro");
        let refused = |source| ConnectError::Refused { target: file.display().to_string(), source };
        // Who only looks must not change the file; ours is in this mode from its creation on.
        let writing = if options.create {
            connect.clone().journal_mode(SqliteJournalMode::Wal)
        } else {
            connect.clone()
        };
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    let look = SQLITE_WRITER_LOOK.as_millis();
                    connection.execute(AssertSqlSafe(format!("PRAGMA busy_timeout = {look}"))).await.map(drop)
                })
            })
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_with(writing)
            .await
            .map_err(refused)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(SQLITE_READERS)
            .test_before_acquire(false)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(connect.read_only(true));
        let writes = if is_read_only { Writes::Refused } else { Writes::Allowed };
        let threads = Arc::new(SqliteThreads::new(&file, writes, writer_pragmas, SQLITE_READERS as usize));
        Ok(Self::Sqlite { writer, readers, threads, file })
    }

    /// Which of the two databases this is.
    pub fn kind(&self) -> DatabaseKind {
        match self {
            Self::Sqlite { .. } => DatabaseKind::Sqlite,
            Self::Postgres { .. } => DatabaseKind::Postgres,
        }
    }

    /// Where it is.
    pub fn target(&self) -> Target {
        match self {
            Self::Sqlite { file, .. } => Target { database: file.display().to_string(), ..Target::default() },
            Self::Postgres { pool, .. } => {
                let options = pool.connect_options();
                let user = options.get_username().to_owned();
                Target {
                    host: Some(options.get_host().to_owned()),
                    port: Some(options.get_port()),
                    // PostgreSQL takes the user's name where no database is named.
                    database: options.get_database().unwrap_or(&user).to_owned(),
                    user: Some(user),
                }
            }
        }
    }

    /// A connection that may write; on SQLite there is one, and its users queue in fair order.
    pub(crate) async fn writer(&self) -> sqlx::Result<Connection> {
        match self {
            Self::Sqlite { writer, .. } => Ok(Connection::Sqlite(writer.acquire().await?)),
            Self::Postgres { pool, .. } => Ok(Connection::Postgres(pool.acquire().await?)),
        }
    }

    /// A connection for reading only.
    pub(crate) async fn reader(&self) -> sqlx::Result<Connection> {
        match self {
            Self::Sqlite { readers, .. } => Ok(Connection::Sqlite(readers.acquire().await?)),
            Self::Postgres { pool, .. } => Ok(Connection::Postgres(pool.acquire().await?)),
        }
    }

    /// Waits for what the database answers, but not for a server that has vanished. Then what was waited for is dropped
    /// half-way, and the connection that it used must not be used again.
    pub(crate) fn answer<T, E: From<sqlx::Error>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> impl Future<Output = Result<T, E>> {
        match self {
            Self::Sqlite { .. } => Either::Left(work),
            Self::Postgres { lifeline, .. } => Either::Right(lifeline.keep(work)),
        }
    }

    /// Runs one statement in a transaction of its own and says how many rows it touched.
    pub async fn execute(&self, sql: impl Into<Sql>, values: impl Values) -> sqlx::Result<u64> {
        if self.kind() == DatabaseKind::Postgres {
            return self.answer(async { self.writer().await?.execute(sql.into(), values).await }).await;
        }
        // In the guard of a transaction: a caller that gives up half-way must not leave the lock behind.
        let mut tx = Tx::begin(self, Signal::new()).await?;
        let result = tx.execute(sql, values).await;
        match result {
            Ok(_) => tx.commit().await?,
            Err(_) => tx.rollback().await,
        }
        result
    }

    /// Reads rows, outside of any transaction.
    pub async fn fetch_all<T: Record>(
        &self,
        sql: impl Into<Sql>,
        values: impl Values,
    ) -> sqlx::Result<Vec<T>> {
        self.answer(async { self.reader().await?.fetch_all(sql.into(), values).await }).await
    }

    /// Reads at most one row, outside of any transaction.
    pub async fn fetch_optional<T: Record>(
        &self,
        sql: impl Into<Sql>,
        values: impl Values,
    ) -> sqlx::Result<Option<T>> {
        self.answer(async { self.reader().await?.fetch_optional(sql.into(), values).await }).await
    }

    /// Closes every connection and waits until they are closed, but not for a server that has vanished.
    pub async fn close(&self) {
        match self {
            Self::Sqlite { writer, readers, threads, .. } => {
                threads.close().await;
                readers.close().await;
                writer.close().await;
            }
            Self::Postgres { pool, .. } => {
                // A connection that was given back just when the network vanished is waited for by its pool until the
                // kernel gives it up.
                let _ = tokio::time::timeout(CLOSE_LIMIT, pool.close()).await;
            }
        }
    }
}

/// A URL that was understood.
enum Address {
    Postgres(Box<PgConnectOptions>),
    Sqlite(Box<SqliteConnectOptions>),
}

impl Address {
    fn parse(url: &str) -> Result<Self, ConnectError> {
        let invalid = |reason: &str| ConnectError::InvalidUrl { reason: reason.to_owned() };
        let malformed = |error: sqlx::Error| ConnectError::InvalidUrl { reason: error.to_string() };
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            let connect = PgConnectOptions::from_str(url).map_err(malformed)?;
            match connect.get_ssl_mode() {
                PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer => {
                    Ok(Self::Postgres(Box::new(connect)))
                }
                _ => Err(invalid("sslmode asks for TLS, which this program is built without")),
            }
        } else if url.starts_with("sqlite:") {
            if url.contains(":memory:") || url.contains("mode=memory") {
                return Err(invalid("a database in memory would be gone when the command ends"));
            }
            Ok(Self::Sqlite(Box::new(SqliteConnectOptions::from_str(url).map_err(malformed)?)))
        } else {
            Err(invalid("unknown kind of database"))
        }
    }
}

/// An empty file that only its owner may read, in a folder that only its owner may enter.
fn create_private(file: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};

    if let Some(folder) = file.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}
