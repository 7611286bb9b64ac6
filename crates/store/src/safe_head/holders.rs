//! Who holds the append lock (PostgreSQL): those for whom readers wait, and how to tell people about them.
//!
//! They are known by their virtual transaction alone: a prepared transaction keeps it but loses its process.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use sqlx::PgConnection;

/// A transaction that has drawn positions and not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// How long the transaction is open, or prepared; unknown to a role that may not see it.
    pub age: Option<Duration>,
    /// What it is.
    pub kind: HolderKind,
    /// What the server calls it while it lasts.
    pub(super) transaction: String,
}

/// What holds the append lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HolderKind {
    /// A session. What a role without `pg_read_all_stats` may not see of others is none.
    Session {
        /// Its process.
        pid: i32,
        /// What it calls itself.
        application: Option<String>,
        /// Its role.
        user: Option<String>,
        /// From where it is connected; none for a local socket.
        client: Option<String>,
        /// What it is doing: `idle in transaction`, for one.
        state: Option<String>,
        /// Its last statement.
        query: Option<String>,
    },
    /// A prepared transaction: it belongs to no session, and lasts until somebody ends it.
    Prepared {
        /// Its name.
        gid: String,
        /// Its role.
        owner: String,
    },
}

impl Holder {
    /// The statement that ends it and gives up what it wrote.
    pub fn ending(&self) -> String {
        match &self.kind {
            HolderKind::Session { pid, .. } => format!("SELECT pg_terminate_backend({pid})"),
            HolderKind::Prepared { gid, .. } => format!("ROLLBACK PREPARED '{}'", gid.replace('\'', "''")),
        }
    }
}

/// For a sentence such as "readers wait for …".
impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            HolderKind::Session { pid, application, user, state, .. } => {
                write!(f, "session {pid}")?;
                if let Some(application) = application.as_deref().filter(|name| !name.is_empty()) {
                    write!(f, " of {application:?}")?;
                }
                if let Some(user) = user {
                    write!(f, " as {user}")?;
                }
                if let Some(state) = state {
                    write!(f, ", {state}")?;
                }
            }
            HolderKind::Prepared { gid, owner } => write!(f, "prepared transaction {gid:?} of {owner}")?,
        }
        match self.age {
            Some(age) => write!(f, ", open for {} s", age.as_secs()),
            None => Ok(()),
        }
    }
}

/// The names of the transactions that hold the append lock of this log and are still open; none on a standby, which
/// shows nobody's locks.
///
/// One that ends in /0 has committed, is visible, and only has not let go of its locks yet.
pub(super) async fn holders(connection: &mut PgConnection) -> sqlx::Result<Option<HashSet<String>>> {
    // Asked in one statement: a server must not become a standby in between.
    let rows: Vec<(bool, Option<String>)> = sqlx::query_as(
        "SELECT pg_is_in_recovery(), l.virtualtransaction
           FROM (SELECT 1) AS one
           LEFT JOIN pg_locks l
             ON l.locktype = 'advisory' AND l.granted
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND l.classid = 1214607969 AND l.objid = 'herald_positions'::regclass::oid AND l.objsubid = 2
            AND l.virtualtransaction NOT LIKE '%/0'",
    )
    .fetch_all(connection)
    .await?;
    if rows.iter().any(|row| row.0) {
        return Ok(None);
    }
    Ok(Some(rows.into_iter().filter_map(|row| row.1).collect()))
}

#[derive(sqlx::FromRow)]
struct Row {
    transaction: String,
    pid: Option<i32>,
    application: Option<String>,
    username: Option<String>,
    client: Option<String>,
    state: Option<String>,
    query: Option<String>,
    gid: Option<String>,
    owner: Option<String>,
    age_ms: Option<i64>,
}

/// As [`holders`], with all that may be known of them, the oldest first. For people: it is no proof of anything.
pub(super) async fn describe_holders(connection: &mut PgConnection) -> sqlx::Result<Vec<Holder>> {
    // A prepared transaction has no process, and is found by the lock that each transaction has on its own number.
    let rows: Vec<Row> = sqlx::query_as(
        "WITH locks AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted)
         SELECT l.virtualtransaction AS transaction, l.pid,
                a.application_name AS application, a.usename::text AS username,
                host(a.client_addr) AS client, a.state,
                CASE WHEN a.state IS NOT NULL THEN a.query END AS query,
                p.gid, p.owner::text AS owner,
                (extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, p.prepared)) * 1000)::bigint
                  AS age_ms
           FROM locks l
           LEFT JOIN pg_stat_activity a ON a.pid = l.pid
           LEFT JOIN (SELECT x.virtualtransaction, p.*
                        FROM locks x
                        JOIN pg_prepared_xacts p ON p.transaction = x.transactionid) p
             ON l.pid IS NULL AND p.virtualtransaction = l.virtualtransaction
          WHERE l.locktype = 'advisory'
            AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
            AND l.classid = 1214607969 AND l.objid = 'herald_positions'::regclass::oid AND l.objsubid = 2
            AND l.virtualtransaction NOT LIKE '%/0'
          ORDER BY age_ms DESC NULLS LAST, l.pid",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().filter_map(Holder::of).collect())
}

impl Holder {
    /// None for a prepared transaction that ended while it was looked at.
    fn of(row: Row) -> Option<Self> {
        let kind = match (row.pid, row.gid) {
            (Some(pid), _) => HolderKind::Session {
                pid,
                application: row.application,
                user: row.username,
                client: row.client,
                state: row.state,
                query: row.query,
            },
            (None, Some(gid)) => HolderKind::Prepared { gid, owner: row.owner.unwrap_or_default() },
            (None, None) => return None,
        };
        let age = row.age_ms.map(|age| Duration::from_millis(u64::try_from(age).unwrap_or(0)));
        Some(Self { age, kind, transaction: row.transaction })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s10_the_name_of_a_prepared_transaction_cannot_end_its_quotes() {
        let kind = HolderKind::Prepared { gid: "it's".to_owned(), owner: "app".to_owned() };
        let holder =
            Holder { age: Some(Duration::from_millis(61_500)), kind, transaction: "-1/7".to_owned() };

        assert_eq!(holder.ending(), "ROLLBACK PREPARED 'it''s'");
        assert_eq!(holder.to_string(), "prepared transaction \"it's\" of app, open for 61 s");
    }
}
