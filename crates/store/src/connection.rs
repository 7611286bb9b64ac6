//! One connection, to either database: how a statement and its values get there.
//!
//! Who needs a statement that only one of the databases knows finds plain sqlx in here; everybody else writes
//! portable SQL and never asks.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgArguments;
use sqlx::sqlite::SqliteArguments;
use sqlx::{AssertSqlSafe, Executor, Postgres, SqlSafeStr, Sqlite};

use crate::database::DatabaseKind;
use crate::sql::Sql;
use crate::values::{Record, Values};

/// How long a statement waits for another process to let go of an SQLite file.
pub(crate) const SQLITE_BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Rows written by one statement: beyond this a longer statement is not faster.
const ROWS_PER_STATEMENT: usize = 1_000;
/// Values bound by one statement: SQLite takes 32,766.
const VALUES_PER_STATEMENT: usize = 30_000;

/// One connection out of a pool: plain sqlx, for the rare statement that is not portable.
#[derive(Debug)]
pub enum Connection {
    /// To a file.
    Sqlite(PoolConnection<Sqlite>),
    /// To a server.
    Postgres(PoolConnection<Postgres>),
}

impl Connection {
    /// Runs literal SQL, of one statement or several, without values.
    pub(crate) async fn run(&mut self, sql: impl SqlSafeStr) -> sqlx::Result<()> {
        match self {
            Self::Sqlite(connection) => connection.execute(sqlx::raw_sql(sql)).await.map(drop),
            Self::Postgres(connection) => connection.execute(sqlx::raw_sql(sql)).await.map(drop),
        }
    }

    /// Begins a transaction. On SQLite this takes the write lock at once: a transaction that reads first and
    /// writes later could fail for reasons that no retry inside it can mend.
    pub(crate) async fn begin(&mut self) -> sqlx::Result<()> {
        if self.kind() == DatabaseKind::Postgres {
            return self.run("BEGIN").await;
        }
        let start = tokio::time::Instant::now();
        loop {
            match self.run("BEGIN IMMEDIATE").await {
                Err(error) if is_busy(&error) && start.elapsed() < SQLITE_BUSY_TIMEOUT => {}
                result => return result,
            }
        }
    }

    /// Commits, and fails if there is nothing to commit any more.
    pub(crate) async fn commit(&mut self) -> sqlx::Result<()> {
        match self.kind() {
            DatabaseKind::Sqlite => self.run("COMMIT").await,
            // PostgreSQL answers the COMMIT of a failed transaction with a rollback and calls it a success. Any
            // other statement is refused there, so one goes ahead, in the same round trip.
            DatabaseKind::Postgres => self.run("SELECT 1; COMMIT").await,
        }
    }

    pub(crate) fn kind(&self) -> DatabaseKind {
        match self {
            Self::Sqlite(_) => DatabaseKind::Sqlite,
            Self::Postgres(_) => DatabaseKind::Postgres,
        }
    }

    pub(crate) async fn execute(&mut self, sql: Sql, values: impl Values) -> sqlx::Result<u64> {
        let sql = sql.for_database(self.kind());
        match self {
            Self::Sqlite(connection) => {
                let query = sqlx::query_with(sql, sqlite_arguments(values)?);
                Ok(query.execute(&mut **connection).await?.rows_affected())
            }
            Self::Postgres(connection) => {
                let query = sqlx::query_with(sql, postgres_arguments(values)?);
                Ok(query.execute(&mut **connection).await?.rows_affected())
            }
        }
    }

    pub(crate) async fn fetch_all<T: Record>(
        &mut self,
        sql: Sql,
        values: impl Values,
    ) -> sqlx::Result<Vec<T>> {
        let sql = sql.for_database(self.kind());
        match self {
            Self::Sqlite(connection) => {
                let query = sqlx::query_as_with(sql, sqlite_arguments(values)?);
                query.fetch_all(&mut **connection).await
            }
            Self::Postgres(connection) => {
                let query = sqlx::query_as_with(sql, postgres_arguments(values)?);
                query.fetch_all(&mut **connection).await
            }
        }
    }

    pub(crate) async fn fetch_optional<T: Record>(
        &mut self,
        sql: Sql,
        values: impl Values,
    ) -> sqlx::Result<Option<T>> {
        let sql = sql.for_database(self.kind());
        match self {
            Self::Sqlite(connection) => {
                let query = sqlx::query_as_with(sql, sqlite_arguments(values)?);
                query.fetch_optional(&mut **connection).await
            }
            Self::Postgres(connection) => {
                let query = sqlx::query_as_with(sql, postgres_arguments(values)?);
                query.fetch_optional(&mut **connection).await
            }
        }
    }

    /// Runs the statement over many rows at a time: `{rows}` becomes `(…), (…), …`.
    pub(crate) async fn execute_many<V: Values>(&mut self, sql: &Sql, rows: Vec<V>) -> sqlx::Result<Written> {
        let most = ROWS_PER_STATEMENT.min(VALUES_PER_STATEMENT / V::COUNT.max(1));
        let mut written = Written { rows: 0, last_row_id: None };
        let mut rows = rows.into_iter();
        while rows.len() > 0 {
            let (count, is_prepared) = rows_at_once(self.kind(), rows.len(), most);
            let text = sql.text().replace("{rows}", &placeholders(self.kind(), count, V::COUNT));
            let text = AssertSqlSafe(text);
            let chunk = rows.by_ref().take(count);
            match self {
                Self::Sqlite(connection) => {
                    let mut arguments = SqliteArguments::default();
                    for row in chunk {
                        row.add_to_sqlite(&mut arguments).map_err(sqlx::Error::Encode)?;
                    }
                    let query = sqlx::query_with(text, arguments).persistent(is_prepared);
                    let result = query.execute(&mut **connection).await?;
                    written.rows += result.rows_affected();
                    written.last_row_id = Some(result.last_insert_rowid());
                }
                Self::Postgres(connection) => {
                    let mut arguments = PgArguments::default();
                    for row in chunk {
                        row.add_to_postgres(&mut arguments).map_err(sqlx::Error::Encode)?;
                    }
                    let query = sqlx::query_with(text, arguments).persistent(is_prepared);
                    written.rows += query.execute(&mut **connection).await?.rows_affected();
                }
            }
        }
        Ok(written)
    }

    /// Has the connection closed instead of going back to its pool.
    pub(crate) fn close_on_drop(&mut self) {
        match self {
            Self::Sqlite(connection) => connection.close_on_drop(),
            Self::Postgres(connection) => connection.close_on_drop(),
        }
    }
}

/// What a statement over many rows did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    /// How many rows it touched.
    pub(crate) rows: u64,
    /// The row id that SQLite gave to the last row.
    pub(crate) last_row_id: Option<i64>,
}

/// How many of the rows that are left go into the next statement, and whether it is worth being prepared, as
/// statements of any other length would only push useful ones out of the cache.
fn rows_at_once(kind: DatabaseKind, left: usize, most: usize) -> (usize, bool) {
    let count = left.min(most);
    match kind {
        // A call is cheap here and parsing is not: 100 rows are written as 64, 32 and 4, all prepared.
        DatabaseKind::Sqlite => (1 << count.ilog2(), true),
        // A round trip costs more than parsing.
        DatabaseKind::Postgres => (count, count == most),
    }
}

/// Another process holds the write lock of the file.
fn is_busy(error: &sqlx::Error) -> bool {
    // The low byte of the code is the kind: 261, for one, is busy because somebody recovers the file.
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok());
    code.is_some_and(|code| code & 0xFF == 5)
}

fn sqlite_arguments(values: impl Values) -> sqlx::Result<SqliteArguments> {
    let mut arguments = SqliteArguments::default();
    values.add_to_sqlite(&mut arguments).map_err(sqlx::Error::Encode)?;
    Ok(arguments)
}

fn postgres_arguments(values: impl Values) -> sqlx::Result<PgArguments> {
    let mut arguments = PgArguments::default();
    values.add_to_postgres(&mut arguments).map_err(sqlx::Error::Encode)?;
    Ok(arguments)
}

/// `(?, ?), (?, ?)` for SQLite, which looks numbered ones up one by one (20,000 rows: 13.8 s against 74 ms).
fn placeholders(kind: DatabaseKind, rows: usize, columns: usize) -> String {
    let mut text = String::with_capacity(rows * columns * 7);
    for row in 0..rows {
        text.push_str(if row == 0 { "(" } else { ", (" });
        for column in 0..columns {
            if column > 0 {
                text.push_str(", ");
            }
            match kind {
                DatabaseKind::Sqlite => text.push('?'),
                DatabaseKind::Postgres => {
                    text.push('$');
                    text.push_str(&(row * columns + column + 1).to_string());
                }
            }
        }
        text.push(')');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_written_once() {
        let lengths = |kind, mut left: usize| {
            let mut lengths = Vec::new();
            while left > 0 {
                let (count, _) = rows_at_once(kind, left, 1_000);
                lengths.push(count);
                left -= count;
            }
            lengths
        };
        assert_eq!(lengths(DatabaseKind::Sqlite, 1_101), [512, 512, 64, 8, 4, 1]);
        assert_eq!(lengths(DatabaseKind::Sqlite, 1), [1]);
        assert_eq!(lengths(DatabaseKind::Postgres, 1_101), [1_000, 101]);
    }

    #[test]
    fn placeholders_suit_each_database() {
        assert_eq!(placeholders(DatabaseKind::Sqlite, 2, 2), "(?, ?), (?, ?)");
        assert_eq!(placeholders(DatabaseKind::Postgres, 2, 2), "($1, $2), ($3, $4)");
    }
}
