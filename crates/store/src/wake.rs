//! Wake-up: a hint that something was committed, in this process or in another one.
//!
//! A hint is never needed for correctness: who waits also looks again after a while. Inside a process it
//! travels by a channel. Between processes it travels on PostgreSQL by a NOTIFY that is sent after the
//! commit, at most one in five milliseconds (a NOTIFY inside each append serialises all commits). On SQLite the
//! waiting process looks at a change counter of the file: when the kernel says that somebody writes, otherwise at
//! intervals.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgListener;
use tokio::sync::watch;

use crate::connection::Connection;
use crate::database::Database;
use crate::file_changes::FileChanges;

/// Hints from one process to another are at least this far apart.
const HINT_PAUSE: Duration = Duration::from_millis(5);
/// How often a waiting process looks at the change counter of an SQLite file where nobody tells it that it changed.
const SQLITE_LOOK: Duration = Duration::from_millis(20);
/// How often it looks where somebody does, in case that something was not told.
const SQLITE_RARE_LOOK: Duration = Duration::from_millis(250);
/// How long after it was told it looks for the first time, and twice as long after that, and so on: a commit can be
/// seen when it is on the disk, and that is told when it is written.
const SQLITE_FIRST_LOOK: Duration = Duration::from_millis(1);
/// How long a lost listening connection is left alone before the next try.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// Tells the waiting tasks of this process, and marks that other processes should be told.
#[derive(Clone, Debug)]
pub(crate) struct Signal {
    here: Arc<watch::Sender<u64>>,
    elsewhere: Arc<watch::Sender<Outgoing>>,
}

/// What other processes are still to be told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Outgoing {
    pending: bool,
    stopped: bool,
}

impl Signal {
    pub(crate) fn new() -> Self {
        Self {
            here: Arc::new(watch::Sender::new(0)),
            elsewhere: Arc::new(watch::Sender::new(Outgoing::default())),
        }
    }

    /// Something was committed by this process.
    pub(crate) fn send(&self) {
        // Under load somebody is told already; waking the notifier again would only cost.
        self.elsewhere.send_if_modified(|outgoing| !std::mem::replace(&mut outgoing.pending, true));
        self.heard();
    }

    /// Nothing more will be sent: the notifier sends what is pending and ends.
    pub(crate) fn stop(&self) {
        self.elsewhere.send_modify(|outgoing| outgoing.stopped = true);
    }

    /// Something was committed, by whomever.
    fn heard(&self) {
        self.here.send_modify(|count| *count += 1);
    }

    pub(crate) fn wake(&self) -> Wake {
        Wake(self.here.subscribe())
    }

    pub(crate) fn elsewhere(&self) -> Arc<watch::Sender<Outgoing>> {
        Arc::clone(&self.elsewhere)
    }
}

/// Waits for the next hint. Take it (arm it) before you look, so that nothing falls between.
#[derive(Clone, Debug)]
pub struct Wake(watch::Receiver<u64>);

impl Wake {
    /// Forgets the hints so far: what follows will see their causes.
    pub fn arm(&mut self) {
        self.0.mark_unchanged();
    }

    /// Returns at the first hint since [`Wake::arm`], or after the time-out.
    pub async fn wait(&mut self, at_most: Duration) {
        // A closed channel means that the store is gone; then only the time-out is left.
        if let Ok(Err(_)) = tokio::time::timeout(at_most, self.0.changed()).await {
            tokio::time::sleep(at_most).await;
        }
    }
}

/// The name on which processes that share a log notify each other: the same database and schema.
const CHANNEL: &str = "SELECT 'herald_' || 'herald_positions'::regclass::oid::text";
/// Sent as one message, and so one transaction; nobody needs its commit to reach the disk.
const NOTIFY: &str = "SET LOCAL synchronous_commit TO off;
     SELECT pg_notify('herald_' || 'herald_positions'::regclass::oid::text, '')";

/// Sends what this process committed to the others, until told to stop; then once more if need be, so
/// that a command which ends right after its append is heard.
pub(crate) async fn notify_others(database: Database, elsewhere: Arc<watch::Sender<Outgoing>>) {
    let Database::Postgres { pool } = database else { return };
    let mut changes = elsewhere.subscribe();
    loop {
        // The sender lives as long as this task holds it.
        let Ok(now) = changes.wait_for(|outgoing| outgoing.pending || outgoing.stopped).await.map(|now| *now)
        else {
            return;
        };
        let mut pending = false;
        elsewhere.send_if_modified(|outgoing| {
            pending = std::mem::replace(&mut outgoing.pending, false);
            false
        });
        if pending && let Err(error) = sqlx::raw_sql(NOTIFY).execute(&pool).await {
            tracing::debug!(%error, "could not notify other processes; they will look by themselves");
        }
        if now.stopped {
            return;
        }
        // The first hint goes at once; those of the pause share the next one. Who stops is not kept waiting.
        let _ = tokio::time::timeout(HINT_PAUSE, changes.wait_for(|outgoing| outgoing.stopped)).await;
    }
}

/// Listens for commits of other processes and passes them on, until `stop` resolves.
pub(crate) async fn listen(database: &Database, signal: &Signal, stop: impl Future<Output = ()>) {
    tokio::select! {
        () = stop => {}
        () = async {
            loop {
                if let Err(error) = listen_once(database, signal).await {
                    tracing::warn!(%error, "lost the wake-up connection; looking at intervals until it is back");
                }
                tokio::time::sleep(RECONNECT_PAUSE).await;
            }
        } => {}
    }
}

async fn listen_once(database: &Database, signal: &Signal) -> sqlx::Result<()> {
    match database {
        Database::Postgres { pool } => {
            let channel: String = sqlx::query_scalar(CHANNEL).fetch_one(pool).await?;
            let mut listener = PgListener::connect_with(pool).await?;
            listener.listen(&channel).await?;
            loop {
                // At first for whatever came before anybody listened.
                signal.heard();
                // None: the connection was lost and is back; something may have been missed meanwhile.
                listener.try_recv().await?;
            }
        }
        Database::Sqlite { file, .. } => {
            let Connection::Sqlite(mut connection) = database.reader().await? else { return Ok(()) };
            let (mut seen, mut told, mut pause) = (0_i64, None, Duration::ZERO);
            loop {
                // Counts the commits of other connections to this file, as this connection sees them.
                let now = sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut *connection).await?;
                let is_news = now != seen;
                if is_news {
                    seen = now;
                    signal.heard();
                }
                // After the first look its log of commits is there, and before the second one it is watched.
                let changes = told.get_or_insert_with(|| FileChanges::watch(file));
                let longest = if changes.are_told() { SQLITE_RARE_LOOK } else { SQLITE_LOOK };
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).clamp(SQLITE_FIRST_LOOK, longest),
                    () = changes.wait() => {
                        pause = SQLITE_FIRST_LOOK;
                        tokio::time::sleep(if is_news { HINT_PAUSE } else { pause }).await;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_hint_between_arming_and_waiting_is_not_lost() {
        let signal = Signal::new();
        let mut wake = signal.wake();
        wake.arm();
        signal.send();
        let before = tokio::time::Instant::now();
        wake.wait(Duration::from_secs(60)).await;
        assert!(before.elapsed() < Duration::from_secs(1));
    }
}
