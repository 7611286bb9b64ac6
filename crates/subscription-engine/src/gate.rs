//! Leaves room for others: SQLite's one write lock now and then, and a few of PostgreSQL's connections.
//!
//! A process that works off a backlog would take the write lock again the moment it lets go of it, and another
//! process would never get through. So all units of a process pass one gate, in fair order, and the gate
//! keeps the lock free for a tenth of the time. On PostgreSQL as many pass as the pool has connections, less a
//! few: slow handlers must not keep the feed, the heartbeat and operators waiting.

use std::sync::Arc;
use std::time::Duration;

use store::Database;
use tokio::sync::{Mutex, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The lock is left free this long …
const FREE: Duration = Duration::from_millis(10);
/// … after it was in use for this long.
const BUSY: Duration = Duration::from_millis(90);
/// Connections that no unit takes: for reading the log, for the two that pass on wake-ups, for an operator.
const RESERVED: u32 = 4;

/// Clones lead through the same gate.
#[derive(Clone, Debug)]
pub(crate) enum Gate {
    OneWriter(Arc<Mutex<Times>>),
    Connections(Arc<Semaphore>),
}

#[derive(Debug)]
pub(crate) struct Times {
    /// When the lock was last known to be free for [`FREE`].
    free_at: Instant,
    /// When the last one let go of it.
    left_at: Instant,
}

/// Passed the gate; the next one waits until this is dropped.
#[derive(Debug)]
pub(crate) enum Passage {
    OneWriter(OwnedMutexGuard<Times>),
    Connection { _permit: Option<OwnedSemaphorePermit> },
}

impl Gate {
    pub(crate) fn new(database: &Database) -> Self {
        match database {
            Database::Sqlite { .. } => Self::one_writer(),
            Database::Postgres { pool, .. } => {
                let units = pool.options().get_max_connections().saturating_sub(RESERVED).max(1);
                Self::Connections(Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(1))))
            }
        }
    }

    fn one_writer() -> Self {
        let now = Instant::now();
        Self::OneWriter(Arc::new(Mutex::new(Times { free_at: now, left_at: now })))
    }

    pub(crate) async fn pass(&self) -> Passage {
        let times = match self {
            Self::OneWriter(times) => times,
            Self::Connections(permits) => {
                // Never closed; if it were, the gate would stand open.
                return Passage::Connection { _permit: Arc::clone(permits).acquire_owned().await.ok() };
            }
        };
        let mut times = Arc::clone(times).lock_owned().await;
        let now = Instant::now();
        if now - times.left_at >= FREE {
            times.free_at = now;
        } else if now - times.free_at >= BUSY {
            tokio::time::sleep(FREE).await;
            times.free_at = Instant::now();
        }
        Passage::OneWriter(times)
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if let Self::OneWriter(times) = self {
            times.left_at = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn e20a_a_tenth_of_the_time_is_left_free() {
        let gate = Gate::one_writer();
        let start = Instant::now();
        let mut held = Duration::ZERO;
        for _ in 0..1_000 {
            let passage = gate.pass().await;
            let begin = Instant::now();
            tokio::time::sleep(Duration::from_millis(3)).await;
            held += begin.elapsed();
            drop(passage);
        }
        let free = start.elapsed() - held;
        assert!(free >= start.elapsed().mul_f64(0.09), "free for {free:?} of {:?}", start.elapsed());
    }
}
