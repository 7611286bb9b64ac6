//! One transaction, on either database: what an owner commits and everybody else is lent.
//!
//! A handler gets `&mut Tx` and cannot commit, since commit takes it by value. A statement that failed
//! poisons the transaction: whoever swallows the error finds every later call and the commit refused.
//! A transaction that is dropped half-way closes its connection, so nothing of it ever comes back.

use std::fmt;
use std::sync::Arc;

use sqlx::AssertSqlSafe;

use crate::closed::KnownClosed;
use crate::connection::Connection;
use crate::database::{Database, DatabaseKind};
use crate::hooks::Untold;
use crate::lifeline::{Lifeline, vanished};
use crate::sql::Sql;
use crate::store::Store;
use crate::values::{Record, Values};
use crate::wake::Signal;

/// An open transaction.
#[derive(Debug)]
pub struct Tx {
    connection: Connection,
    /// Whether the server is there while a statement waits for it; SQLite needs none.
    lifeline: Option<Arc<Lifeline>>,
    /// A statement was dropped half-way, or the connection broke: it understands nothing more.
    is_lost: bool,
    signal: Signal,
    /// What the first failed statement said.
    failure: Option<String>,
    open: bool,
    appended: bool,
    /// What hooks are told once this is committed.
    untold: Option<Untold>,
    /// A stream is closed once this is committed: reads look again.
    closes: Option<Arc<KnownClosed>>,
    /// How many savepoints were made; each has a name of its own, so that going back to an outer one never
    /// means an inner one that somebody forgot.
    savepoints: u32,
}

/// A place inside a transaction to go back to.
#[derive(Debug)]
#[must_use]
pub struct Savepoint {
    number: u32,
    /// Whether the transaction had appended when this was made.
    appended: bool,
}

impl Tx {
    pub(crate) async fn begin(database: &Database, signal: Signal) -> sqlx::Result<Self> {
        let connection = database.writer().await?;
        let lifeline = match database {
            Database::Sqlite { .. } => None,
            Database::Postgres { lifeline, .. } => Some(Arc::clone(lifeline)),
        };
        let mut tx = Self {
            connection,
            lifeline,
            is_lost: false,
            signal,
            failure: None,
            open: true,
            appended: false,
            untold: None,
            closes: None,
            savepoints: 0,
        };
        tx.asked(async |connection| connection.begin().await).await?;
        Ok(tx)
    }

    /// Which database this runs on.
    pub fn kind(&self) -> DatabaseKind {
        self.connection.kind()
    }

    /// Runs one statement and says how many rows it touched.
    pub async fn execute(&mut self, sql: impl Into<Sql>, values: impl Values) -> sqlx::Result<u64> {
        self.usable()?;
        let sql = sql.into();
        let result = self.asked(async |connection| connection.execute(sql, values).await).await;
        self.remember(result)
    }

    /// Runs `INSERT … VALUES {rows} …` (or any statement with `{rows}`) over all rows, many at a time, and
    /// says how many rows it touched. On PostgreSQL one conflict key must not stand in it twice: fold first.
    pub async fn execute_many<V: Values>(&mut self, sql: impl Into<Sql>, rows: Vec<V>) -> sqlx::Result<u64> {
        self.usable()?;
        let sql = sql.into();
        let result = self.asked(async |connection| connection.execute_many(&sql, rows).await).await;
        self.remember(result).map(|written| written.rows)
    }

    /// Reads rows.
    pub async fn fetch_all<T: Record>(
        &mut self,
        sql: impl Into<Sql>,
        values: impl Values,
    ) -> sqlx::Result<Vec<T>> {
        self.usable()?;
        let sql = sql.into();
        let result = self.asked(async |connection| connection.fetch_all(sql, values).await).await;
        self.remember(result)
    }

    /// Reads at most one row.
    pub async fn fetch_optional<T: Record>(
        &mut self,
        sql: impl Into<Sql>,
        values: impl Values,
    ) -> sqlx::Result<Option<T>> {
        self.usable()?;
        let sql = sql.into();
        let result = self.asked(async |connection| connection.fetch_optional(sql, values).await).await;
        self.remember(result)
    }

    /// Plain sqlx on this transaction's connection, for a statement that only one database knows.
    /// Failures there are yours: they do not poison the transaction.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// Marks a place to go back to, for work that is allowed to fail.
    pub async fn savepoint(&mut self) -> sqlx::Result<Savepoint> {
        self.usable()?;
        let number = self.savepoints;
        self.savepoints += 1;
        let result = self.run(format!("SAVEPOINT attempt_{number}")).await;
        self.remember(result)?;
        Ok(Savepoint { number, appended: self.appended })
    }

    /// Keeps what was done since the savepoint; refused if a statement failed since.
    pub async fn release(&mut self, savepoint: Savepoint) -> sqlx::Result<()> {
        self.usable()?;
        let sql = format!("RELEASE SAVEPOINT attempt_{}", savepoint.number);
        let result = self.run(sql).await;
        self.remember(result)
    }

    /// Undoes everything since the savepoint, its failures and its append too.
    pub async fn roll_back_to(&mut self, savepoint: Savepoint) -> sqlx::Result<()> {
        self.failure = None;
        self.appended = savepoint.appended;
        if !self.appended {
            self.untold = None;
        }
        let name = format!("attempt_{}", savepoint.number);
        let sql = format!("ROLLBACK TO SAVEPOINT {name}; RELEASE SAVEPOINT {name}");
        let result = self.run(sql).await;
        self.remember(result)
    }

    /// Commits. Refused, and rolled back, if a statement of this transaction failed.
    pub async fn commit(mut self) -> sqlx::Result<()> {
        if let Err(error) = self.usable() {
            self.rollback().await;
            return Err(error);
        }
        self.asked(async |connection| connection.commit().await).await?;
        self.open = false;
        if let Some(known) = self.closes.take() {
            known.look_again();
        }
        if self.appended {
            self.signal.send();
        }
        if let Some(untold) = self.untold.take() {
            untold.tell();
        }
        Ok(())
    }

    /// Undoes everything. If even that fails the connection is closed, which undoes it as well.
    pub async fn rollback(mut self) {
        if self.run("ROLLBACK".to_owned()).await.is_ok() {
            self.open = false;
        }
        if self.appended {
            // Readers may stand before the positions that will not be filled now.
            self.signal.send();
        }
    }

    async fn run(&mut self, sql: String) -> sqlx::Result<()> {
        self.asked(async |connection| connection.run(AssertSqlSafe(sql)).await).await
    }

    /// Asks the database something on this connection, and waits for its answer for as long as the server is there.
    pub(crate) async fn asked<T>(
        &mut self,
        ask: impl AsyncFnOnce(&mut Connection) -> sqlx::Result<T>,
    ) -> sqlx::Result<T> {
        if self.is_lost {
            return Err(vanished());
        }
        let asked = ask(&mut self.connection);
        let result = match &self.lifeline {
            None => asked.await,
            Some(lifeline) => lifeline.keep(asked).await,
        };
        self.is_lost = matches!(result, Err(sqlx::Error::Io(_)));
        result
    }

    pub(crate) fn usable(&self) -> sqlx::Result<()> {
        match &self.failure {
            None => Ok(()),
            Some(first) => Err(sqlx::Error::Protocol(format!(
                "the transaction is refused because an earlier statement in it failed: {first}"
            ))),
        }
    }

    /// Refuses the transaction from here on if this is an error.
    pub(crate) fn remember<T, E: fmt::Display>(&mut self, result: Result<T, E>) -> Result<T, E> {
        if let Err(error) = &result
            && self.failure.is_none()
        {
            self.failure = Some(error.to_string());
        }
        result
    }

    pub(crate) fn tell_when_committed(&mut self, untold: Untold) {
        self.untold = Some(untold);
    }

    pub(crate) fn look_again_when_committed(&mut self, store: &Store) {
        self.closes = Some(Arc::clone(store.known_closed()));
    }

    /// Notes that this transaction appends; says whether it is the first time.
    pub(crate) fn note_append(&mut self) -> bool {
        !std::mem::replace(&mut self.appended, true)
    }
}

impl Drop for Tx {
    /// Nobody waited for the end: what the server still does with this connection is unknown, so it goes.
    fn drop(&mut self) {
        if self.open {
            self.connection.close_on_drop();
        }
    }
}
