//! By hand on PostgreSQL: one INSERT … RETURNING for an append, each caller on a connection of its own, into a table
//! with and without the indexes for reading that Herald's has; and for many callers also one connection that writes
//! whatever waits in one statement.

use async_trait::async_trait;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::{EVENT_TYPE, Rows};
use crate::BoxError;
use crate::rounds::{Caller, Contender, Done};

/// Appends that are written together at most.
const GROUP: usize = 256;

const INDEXES: &str = "CREATE INDEX ON raw_indexed (type, position);
     CREATE INDEX ON raw_indexed (split_part(stream, '-', 1), position);
     CREATE INDEX ON raw_indexed (correlation_id, position) WHERE correlation_id IS NOT NULL";

pub(super) async fn by_hand(url: &str, callers: usize, events: usize) -> Result<Vec<Contender>, BoxError> {
    let mut connection = PgConnection::connect(url).await?;
    for table in ["raw_events", "raw_indexed", "raw_groups"] {
        let sql = format!(
            "CREATE TABLE {table} (
                 position        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                 stream          TEXT COLLATE \"C\" NOT NULL,
                 version         BIGINT NOT NULL,
                 type            TEXT COLLATE \"C\" NOT NULL,
                 payload         TEXT NOT NULL,
                 metadata        TEXT NOT NULL,
                 id              UUID NOT NULL UNIQUE,
                 correlation_id  TEXT,
                 recorded_at     TIMESTAMPTZ NOT NULL,
                 UNIQUE (stream, version)
             )"
        );
        connection.execute(AssertSqlSafe(sql)).await?;
    }
    connection.execute(sqlx::raw_sql(INDEXES)).await?;
    let mut contenders = Vec::new();
    for (table, name) in
        [("raw_events", "INSERT, own connections"), ("raw_indexed", "the same, with Herald's indexes")]
    {
        let mut alone = Vec::new();
        for number in 0..callers {
            let connection = PgConnection::connect(url).await?;
            alone.push(Alone { connection, table, rows: Rows::new(number, events) });
        }
        contenders.push(Contender::new(name, alone));
    }
    if callers > 1 {
        let (groups, queue) = mpsc::unbounded_channel();
        // Ends when the last caller is gone; who still waits then sees its answer missing.
        tokio::spawn(commit_groups(connection, queue));
        let shared =
            (0..callers).map(|number| Shared { groups: groups.clone(), rows: Rows::new(number, events) });
        contenders.push(Contender::new("INSERT, group commit", shared));
    }
    Ok(contenders)
}

/// One caller with a connection of its own.
struct Alone {
    connection: PgConnection,
    table: &'static str,
    rows: Rows,
}

#[async_trait]
impl Caller for Alone {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let rows = self.rows.next();
        let count = rows.len();
        let (stream, table) = (self.rows.stream.as_str(), self.table);
        let positions = if let [(version, payload)] = rows.as_slice() {
            let insert = sqlx::query_scalar::<_, i64>(AssertSqlSafe(format!(
                "INSERT INTO {table} (stream, version, type, payload, metadata, id, recorded_at)
                 VALUES ($1, $2, $3, $4, '{{}}', $5, clock_timestamp()) RETURNING position",
            )));
            let insert =
                insert.bind(stream).bind(version).bind(EVENT_TYPE).bind(payload).bind(Uuid::now_v7());
            insert.fetch_all(&mut self.connection).await?
        } else {
            let insert = sqlx::query_scalar::<_, i64>(AssertSqlSafe(format!(
                "INSERT INTO {table} (stream, version, type, payload, metadata, id, recorded_at)
                 SELECT $1, r.version, $2, r.payload, '{{}}', r.id, clock_timestamp()
                   FROM UNNEST($3::bigint[], $4::text[], $5::uuid[]) AS r(version, payload, id)
                 RETURNING position",
            )));
            let (versions, payloads): (Vec<i64>, Vec<String>) = rows.into_iter().unzip();
            let ids: Vec<Uuid> = versions.iter().map(|_| Uuid::now_v7()).collect();
            let insert = insert.bind(stream).bind(EVENT_TYPE).bind(versions).bind(payloads).bind(ids);
            insert.fetch_all(&mut self.connection).await?
        };
        assert_eq!(positions.len(), count);
        Ok(Done::events(count))
    }
}

/// The rows of one append and who waits for the position of the last one.
type Waiting = (String, Vec<(i64, String)>, oneshot::Sender<i64>);

/// Many callers share the statements of one connection.
struct Shared {
    groups: mpsc::UnboundedSender<Waiting>,
    rows: Rows,
}

#[async_trait]
impl Caller for Shared {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let (done, is_done) = oneshot::channel();
        let rows = self.rows.next();
        let events = rows.len();
        self.groups.send((self.rows.stream.clone(), rows, done))?;
        is_done.await?;
        Ok(Done::events(events))
    }
}

async fn commit_groups(
    mut connection: PgConnection,
    mut queue: mpsc::UnboundedReceiver<Waiting>,
) -> Result<(), sqlx::Error> {
    let mut group = Vec::new();
    while queue.recv_many(&mut group, GROUP).await > 0 {
        let (mut streams, mut versions, mut payloads, mut ids) = (vec![], vec![], vec![], vec![]);
        let mut callers = Vec::with_capacity(group.len());
        for (stream, rows, done) in group.drain(..) {
            for (version, payload) in rows {
                streams.push(stream.clone());
                versions.push(version);
                payloads.push(payload);
                ids.push(Uuid::now_v7());
            }
            callers.push((done, streams.len() - 1));
        }
        let insert = sqlx::query_scalar::<_, i64>(
            "INSERT INTO raw_groups (stream, version, type, payload, metadata, id, recorded_at)
             SELECT r.stream, r.version, $1, r.payload, '{}', r.id, clock_timestamp()
               FROM UNNEST($2::text[], $3::bigint[], $4::text[], $5::uuid[]) AS r(stream, version, payload, id)
             RETURNING position",
        );
        let insert = insert.bind(EVENT_TYPE).bind(streams).bind(versions).bind(payloads).bind(ids);
        let positions = insert.fetch_all(&mut connection).await?;
        for (done, last) in callers {
            // A caller that is gone waits for nothing.
            let _ = done.send(positions[last]);
        }
    }
    Ok(())
}
