//! The guard that keeps a half imported log from being appended to, by whomever and also after a crash: it could not
//! be completed then. It is a trigger, so a log that is not being imported pays nothing for it.

use crate::connection::Connection;
use crate::database::DatabaseKind;
use crate::store::Store;
use crate::tx::Tx;

const SQLITE_UP: &str = "CREATE TRIGGER herald_import_under_way BEFORE INSERT ON herald_events
     BEGIN SELECT RAISE(ABORT, 'an import into this log is under way or broke off: import the same file again, to its end'); END";

const POSTGRES_UP: &str = "CREATE FUNCTION herald_refuse_while_importing() RETURNS trigger LANGUAGE plpgsql AS $$
     BEGIN
         RAISE EXCEPTION 'an import into this log is under way or broke off: import the same file again, to its end'
             USING ERRCODE = 'object_not_in_prerequisite_state';
     END
     $$;
     CREATE TRIGGER herald_import_under_way BEFORE INSERT ON herald_events
         FOR EACH STATEMENT WHEN (current_setting('herald.importing', true) IS DISTINCT FROM 'on')
         EXECUTE FUNCTION herald_refuse_while_importing()";

/// How the refusal begins, on both databases.
pub(crate) const REFUSAL: &str = "an import into this log is under way or broke off";

/// Whether appends are refused.
pub(super) async fn is_up(store: &Store) -> sqlx::Result<bool> {
    let row: Option<(i64,)> = store.database().fetch_optional(looks(store.database().kind()), ()).await?;
    Ok(row.is_some())
}

fn looks(kind: DatabaseKind) -> &'static str {
    match kind {
        // The catalogues differ.
        DatabaseKind::Sqlite => {
            "SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = 'herald_import_under_way'"
        }
        DatabaseKind::Postgres => {
            "SELECT CAST(1 AS BIGINT) FROM pg_trigger
              WHERE tgrelid = 'herald_events'::regclass AND tgname = 'herald_import_under_way'"
        }
    }
}

/// Lets this transaction write.
pub(super) async fn open(tx: &mut Tx) -> sqlx::Result<()> {
    match tx.connection() {
        Connection::Sqlite(_) => {
            tx.execute("DROP TRIGGER IF EXISTS herald_import_under_way", ()).await.map(drop)
        }
        Connection::Postgres(_) => {
            // To drop it would wait for every reader.
            let sql = "SELECT set_config('herald.importing', 'on', true)";
            tx.fetch_optional::<(String,)>(sql, ()).await.map(drop)
        }
    }
}

/// Sees to it that whoever comes after this transaction may not write.
pub(super) async fn close(tx: &mut Tx) -> sqlx::Result<()> {
    if tx.fetch_optional::<(i64,)>(looks(tx.kind()), ()).await?.is_some() {
        return Ok(());
    }
    let sql = match tx.kind() {
        DatabaseKind::Sqlite => SQLITE_UP,
        DatabaseKind::Postgres => POSTGRES_UP,
    };
    let result = tx.connection().run(sql).await;
    tx.remember(result)
}

/// Lets everybody append again. On PostgreSQL this waits for reads under way, so it has its own transaction.
pub(super) async fn take_down(tx: &mut Tx) -> sqlx::Result<()> {
    let sql = match tx.kind() {
        DatabaseKind::Sqlite => "DROP TRIGGER herald_import_under_way",
        DatabaseKind::Postgres => {
            "SET LOCAL lock_timeout = '10s';
             DROP TRIGGER herald_import_under_way ON herald_events;
             DROP FUNCTION herald_refuse_while_importing()"
        }
    };
    let result = tx.connection().run(sql).await;
    tx.remember(result)
}
