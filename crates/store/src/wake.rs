//! Wake-up: a hint that something was committed, in this process or in another one.
//!
//! A hint is never needed for correctness: who waits also looks again after a while. Inside a process it
//! travels by a channel. Between processes it travels on PostgreSQL by a NOTIFY that is sent after the
//! commit, at most one in five milliseconds (a NOTIFY inside each append serialises all commits). On SQLite the
//! waiting process looks at a change counter of the file: when the kernel says that somebody writes, otherwise at
//! intervals.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::database::Database;
use crate::errand::Errand;
use crate::file_changes::FileChanges;
use crate::lifeline::{ANSWER_LIMIT, vanished};

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
/// After so much silence a listening connection is asked whether it is still alive.
const SILENCE: Duration = Duration::from_secs(3);

/// Tells the waiting tasks of this process, and marks that other processes should be told.
#[derive(Clone, Debug)]
pub(crate) struct Signal {
    here: Arc<watch::Sender<u64>>,
    elsewhere: Errand,
}

impl Signal {
    pub(crate) fn new() -> Self {
        Self { here: Arc::new(watch::Sender::new(0)), elsewhere: Errand::new() }
    }

    /// Something was committed by this process.
    pub(crate) fn send(&self) {
        self.elsewhere.ask();
        self.heard();
    }

    /// Nothing more will be sent: the notifier sends what is pending and ends.
    pub(crate) fn stop(&self) {
        self.elsewhere.stop();
    }

    /// Something was committed, by whomever.
    fn heard(&self) {
        self.here.send_modify(|count| *count += 1);
    }

    pub(crate) fn wake(&self) -> Wake {
        Wake(self.here.subscribe())
    }

    pub(crate) fn elsewhere(&self) -> Errand {
        self.elsewhere.clone()
    }
}

/// Waits for the next hint. Take it (arm it) before you look, so that nothing falls between.
#[derive(Clone, Debug)]
pub struct Wake(watch::Receiver<u64>);

impl Wake {
    /// Forgets the hints so far: what follows will see their causes. Says whether there were any since it was last
    /// armed.
    pub fn arm(&mut self) -> bool {
        // In one step: a hint that fell between two would be lost to both.
        self.0.borrow_and_update().has_changed()
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
pub(crate) async fn notify_others(database: Database, elsewhere: Errand) {
    let Database::Postgres { pool, lifeline, .. } = database else { return };
    let notify = async || {
        if let Err(error) = lifeline.keep(sqlx::raw_sql(NOTIFY).execute(&pool)).await {
            tracing::debug!(%error, "could not notify other processes; they will look by themselves");
        }
    };
    elsewhere.run(HINT_PAUSE, notify).await;
}

/// Commits of other processes are heard as long as somebody holds this: one connection for the whole process.
#[derive(Debug)]
pub(crate) struct Listening(JoinHandle<()>);

impl Listening {
    pub(crate) fn begin(database: Database, signal: Signal) -> Self {
        Self(tokio::spawn(async move { listen(&database, &signal).await }))
    }

    /// Whether nothing is heard any more: the store was closed, or the runtime that began this is gone.
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Passes the hints of other processes on, until the database is closed.
async fn listen(database: &Database, signal: &Signal) {
    loop {
        match listen_once(database, signal).await {
            Ok(()) => {}
            Err(sqlx::Error::PoolClosed) => return,
            Err(error) => {
                tracing::warn!(%error, "lost the wake-up connection; looking at intervals until it is back");
            }
        }
        tokio::time::sleep(RECONNECT_PAUSE).await;
    }
}

async fn listen_once(database: &Database, signal: &Signal) -> sqlx::Result<()> {
    match database {
        Database::Postgres { pool, .. } => {
            let asking = sqlx::query_scalar("SELECT pg_is_in_recovery()").fetch_one(pool);
            if database.answer(asking).await? {
                // A standby takes no LISTEN: who waits there looks at intervals.
                signal.heard();
                return Ok(());
            }
            let channel: String = database.answer(sqlx::query_scalar(CHANNEL).fetch_one(pool)).await?;
            // Of its own: a listener that is lost with its network lets go of its connection late.
            let connect = pool.connect_options().as_ref().clone();
            let ear = PgPoolOptions::new().max_connections(1).connect_lazy_with(connect);
            pool.close_event().do_until(hear(&ear, &channel, signal)).await?
        }
        Database::Sqlite { readers, file, .. } => {
            let mut connection = readers.acquire().await?;
            let looking = async {
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
            };
            // Who closes the database waits until this connection is back.
            readers.close_event().do_until(looking).await?
        }
    }
}

/// Passes on what is heard over this pool's one connection, until it is lost.
async fn hear(ear: &PgPool, channel: &str, signal: &Signal) -> sqlx::Result<()> {
    let in_time = async |asking: BoxFuture<'_, sqlx::Result<()>>| {
        tokio::time::timeout(ANSWER_LIMIT, asking).await.unwrap_or_else(|_| Err(vanished()))
    };
    let mut listener = PgListener::connect_with(ear).await?;
    in_time(Box::pin(listener.listen(channel))).await?;
    // For whatever came before anybody listened.
    signal.heard();
    loop {
        match tokio::time::timeout(SILENCE, listener.try_recv()).await {
            Ok(heard) => {
                // None: the connection was lost and is back; something may have been missed meanwhile.
                heard?;
                signal.heard();
            }
            // A server that has vanished is as silent as one at which nothing happens.
            Err(_) => {
                let asking = async { sqlx::raw_sql("SELECT 1").execute(&mut listener).await.map(drop) };
                in_time(Box::pin(asking)).await?;
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
