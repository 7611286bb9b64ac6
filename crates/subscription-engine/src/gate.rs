//! Leaves SQLite's one write lock to others now and then.
//!
//! A process that works off a backlog would take the lock again the moment it lets go of it, and another
//! process would never get through. So all units of a process pass one gate, in fair order, and the gate
//! keeps the lock free for a tenth of the time. On PostgreSQL the gate stands open.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::Instant;

/// The lock is left free this long …
const FREE: Duration = Duration::from_millis(10);
/// … after it was in use for this long.
const BUSY: Duration = Duration::from_millis(90);

#[derive(Debug)]
pub(crate) struct Gate(Option<Arc<Mutex<Times>>>);

#[derive(Debug)]
struct Times {
    /// When the lock was last known to be free for [`FREE`].
    free_at: Instant,
    /// When the last one let go of it.
    left_at: Instant,
}

/// Passed the gate; the next one waits until this is dropped.
#[derive(Debug)]
pub(crate) struct Passage(Option<OwnedMutexGuard<Times>>);

impl Gate {
    pub(crate) fn new(one_writer: bool) -> Self {
        let now = Instant::now();
        Self(one_writer.then(|| Arc::new(Mutex::new(Times { free_at: now, left_at: now }))))
    }

    pub(crate) async fn pass(&self) -> Passage {
        let Some(times) = &self.0 else { return Passage(None) };
        let mut times = Arc::clone(times).lock_owned().await;
        let now = Instant::now();
        if now - times.left_at >= FREE {
            times.free_at = now;
        } else if now - times.free_at >= BUSY {
            tokio::time::sleep(FREE).await;
            times.free_at = Instant::now();
        }
        Passage(Some(times))
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        if let Some(times) = &mut self.0 {
            times.left_at = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn e20a_a_tenth_of_the_time_is_left_free() {
        let gate = Gate::new(true);
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
