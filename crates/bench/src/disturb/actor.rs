//! Who disturbs: one more appender with bad habits, an administrator, or a stranger who has nothing to do with it.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, SqliteConnection};
use store::{Append, Store, Tx};
use testkit::{Cluster, Prepared, Random};
use tokio::task::JoinHandle;

use super::appender::{AGAIN_AFTER, acknowledge, append, ids, some_append};
use super::child::Child;
use super::disturbance::{Disturbance, Way};
use super::{Place, Plan, Record};
use crate::BoxError;

/// How long an appender is in the midst of its append when it gets killed.
const MID_APPEND: Duration = Duration::from_millis(100);
/// How often a single appender is terminated, or a process killed.
const TIMES: u32 = 3;

/// Does what the disturbance is about, within the span of the cell.
pub(super) struct Actor<'a> {
    pub(super) plan: &'a Plan,
    pub(super) place: &'a Place<'a>,
    pub(super) store: Store,
    pub(super) record: Record,
}

impl Actor<'_> {
    pub(super) async fn act(&self) -> Result<(), BoxError> {
        let span = self.plan.span;
        let silence = self.plan.disturbance.silence(span).unwrap_or_default();
        tokio::time::sleep(span / 10).await;
        match self.plan.disturbance {
            Disturbance::IdleAppender => {
                let idle = self.mid_append().await?;
                tokio::time::sleep(silence).await;
                self.commit(idle).await?;
            }
            Disturbance::Prepared => {
                for how in ["COMMIT", "ROLLBACK"] {
                    let open = self.mid_append().await?;
                    tokio::time::sleep(MID_APPEND).await;
                    let prepared = Prepared::from(open.tx).await;
                    tokio::time::sleep(silence).await;
                    prepared.end(&self.store, how).await;
                    match how {
                        "COMMIT" => acknowledge(&self.record, &open.appends, &open.appended),
                        _ => self.record.note(|noted| noted.void.extend(ids(&open.appends))),
                    }
                }
            }
            Disturbance::PreparedAcrossCrash => {
                let open = self.mid_append().await?;
                tokio::time::sleep(MID_APPEND).await;
                let prepared = Prepared::from(open.tx).await;
                tokio::time::sleep(span / 10).await;
                self.restart(Cluster::restart_immediate)?;
                tokio::time::sleep(span / 5).await;
                prepared.end(&self.store_that_answers().await, "COMMIT").await;
                acknowledge(&self.record, &open.appends, &open.appended);
            }
            Disturbance::Terminated => {
                for _ in 0..TIMES {
                    self.end_in_mid_append(|pid| format!("SELECT pg_terminate_backend({pid})")).await?;
                    tokio::time::sleep(span / 10).await;
                }
            }
            Disturbance::KilledBackend => self.kill_in_mid_append().await?,
            Disturbance::KilledProcess => {
                for number in 0..TIMES {
                    let child = self.place.child.append_to(self.place.database.url(), number)?;
                    tokio::time::sleep(span / 5).await;
                    child.kill_and_note(&self.record)?;
                }
            }
            Disturbance::FastRestart => self.restart(Cluster::restart_fast)?,
            Disturbance::ImmediateRestart => self.restart(Cluster::restart_immediate)?,
            Disturbance::LockedStream => {
                let open = self.mid_append().await?;
                open.tx.rollback().await;
                self.record.note(|noted| noted.void.extend(ids(&open.appends)));
            }
            _ => {}
        }
        Ok(())
    }

    /// Positions are drawn and rows written; the commit is still to come.
    async fn mid_append(&self) -> Result<OpenAppend, BoxError> {
        let appends = vec![some_append("disturber-1", &mut Random::from_seed(1))];
        let mut tx = self.store.begin().await?;
        let appended = self.store.append_all(&mut tx, appends.clone()).await?;
        Ok(OpenAppend { tx, appends, appended })
    }

    async fn commit(&self, open: OpenAppend) -> Result<(), BoxError> {
        open.tx.commit().await?;
        acknowledge(&self.record, &open.appends, &open.appended);
        Ok(())
    }

    /// An administrator ends the session of an append before its commit.
    async fn end_in_mid_append(&self, order: impl Fn(i32) -> String) -> Result<(), BoxError> {
        let (open, pid) = self.mid_append_of().await?;
        let mut administrator = PgConnection::connect(self.place.database.url()).await?;
        administrator.execute(sqlx::raw_sql(AssertSqlSafe(order(pid)))).await?;
        administrator.close().await?;
        self.must_be_void(open).await
    }

    async fn kill_in_mid_append(&self) -> Result<(), BoxError> {
        let (open, pid) = self.mid_append_of().await?;
        let killed = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status()?;
        assert!(killed.success(), "the backend is there to be killed");
        self.must_be_void(open).await
    }

    async fn mid_append_of(&self) -> Result<(OpenAppend, i32), BoxError> {
        let mut open = self.mid_append().await?;
        let pid = open.tx.fetch_optional::<(i32,)>("SELECT pg_backend_pid()", ()).await?;
        tokio::time::sleep(MID_APPEND).await;
        Ok((open, pid.ok_or("a backend has a pid")?.0))
    }

    async fn must_be_void(&self, open: OpenAppend) -> Result<(), BoxError> {
        if open.tx.commit().await.is_ok() {
            return Err("a session that was ended has committed".into());
        }
        self.record.note(|noted| noted.void.extend(ids(&open.appends)));
        Ok(())
    }

    fn restart(&self, how: fn(&Cluster) -> Result<(), testkit::ClusterError>) -> Result<(), BoxError> {
        let cluster = self.place.cluster.ok_or("only a server of our own is restarted")?;
        tokio::task::block_in_place(|| how(cluster))?;
        Ok(())
    }

    /// Connections of before the crash fail once each.
    async fn store_that_answers(&self) -> Store {
        while self.store.schema().await.is_err() {
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        self.store.clone()
    }
}

struct OpenAppend {
    tx: Tx,
    appends: Vec<Append>,
    appended: Vec<store::Appended>,
}

/// Somebody who is there all the time and for whom no reader may wait.
pub(super) enum Stranger {
    Nobody,
    /// A session in a transaction; the database that was made for it, if one was.
    Postgres(PgConnection, Option<Box<(PgConnectOptions, String)>>),
    Sqlite(SqliteConnection),
    Process(Child),
    /// A stranger's lock and the appender that waits for it.
    LockedStream(PgConnection, JoinHandle<()>),
}

impl Stranger {
    pub(super) async fn begin(
        disturbance: Disturbance,
        place: &Place<'_>,
        record: &Record,
    ) -> Result<Self, BoxError> {
        let database = &place.database;
        const WRITE: &str = "CREATE TABLE strange (id BIGINT); BEGIN; INSERT INTO strange VALUES (1)";
        const READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM herald_events";
        Ok(match disturbance {
            Disturbance::UnrelatedWriter => Self::Postgres(session(database.url(), WRITE).await?, None),
            Disturbance::UnrelatedReader if database.is_postgres() => {
                Self::Postgres(session(database.url(), READ).await?, None)
            }
            Disturbance::UnrelatedReader => {
                let options: SqliteConnectOptions = database.url().parse()?;
                let mut connection = options.read_only(true).connect().await?;
                connection.execute(sqlx::raw_sql("BEGIN; SELECT count(*) FROM herald_events")).await?;
                Self::Sqlite(connection)
            }
            Disturbance::OtherDatabase => {
                let name = format!("strange_{}", uuid::Uuid::new_v4().simple());
                let options: PgConnectOptions = database.url().parse()?;
                let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
                options.connect().await?.execute(sqlx::raw_sql(create)).await?;
                let mut there =
                    options.clone().database(&name).options([("search_path", "public")]).connect().await?;
                there.execute(sqlx::raw_sql(WRITE)).await?;
                Self::Postgres(there, Some(Box::new((options, name))))
            }
            Disturbance::LockedStream => {
                let store = database.open().await;
                let mut random = Random::from_seed(2);
                append(&store, Way::Raw, vec![some_append("locked-1", &mut random)], record).await;
                let lock = "BEGIN; SELECT FROM herald_streams WHERE stream = 'locked-1' FOR UPDATE";
                let session = session(database.url(), lock).await?;
                // It comes to its end after all has been judged.
                let record = Record::default();
                let waiting = tokio::spawn(async move {
                    append(&store, Way::Raw, vec![some_append("locked-1", &mut random)], &record).await;
                    store.close().await;
                });
                Self::LockedStream(session, waiting)
            }
            Disturbance::OtherProcess => Self::Process(place.child.write_to(database.url())?),
            _ => Self::Nobody,
        })
    }

    pub(super) async fn end(self) -> Result<(), BoxError> {
        match self {
            Self::Nobody => {}
            Self::Postgres(connection, made) => {
                connection.close().await?;
                if let Some((options, name)) = made.map(|made| *made) {
                    let drop = AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
                    options.connect().await?.execute(sqlx::raw_sql(drop)).await?;
                }
            }
            Self::Sqlite(connection) => connection.close().await?,
            Self::Process(child) => child.end()?,
            Self::LockedStream(connection, waiting) => {
                assert!(!waiting.is_finished(), "the stream was locked all the time");
                connection.close().await?;
                waiting.await?;
            }
        }
        Ok(())
    }
}

async fn session(url: &str, sql: &'static str) -> Result<PgConnection, BoxError> {
    let mut connection = PgConnection::connect(url).await?;
    connection.execute(sqlx::raw_sql(sql)).await?;
    Ok(connection)
}
