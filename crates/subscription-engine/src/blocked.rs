//! Handlers that block their thread: nobody can cut them short, since they never give the thread back.
//!
//! So a handler runs where others do not wait for its thread, and what of it has been running for long without a pause
//! is written down for people to see, for as long as it lasts.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use store::Timestamp;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::watch;

use crate::engine::Engine;
use crate::stalls;
use crate::worker::stopped_within;

/// A handler that has kept its thread for this long is said to block it.
const BLOCKS_AFTER: Duration = Duration::from_secs(3);
/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);

/// Which handlers of this process are on a thread at this moment, and since when.
#[derive(Debug, Default)]
pub(crate) struct OnThreads {
    next: AtomicU64,
    running: Mutex<HashMap<u64, (String, Instant)>>,
}

/// Is on a thread until this is dropped.
struct OnThread<'a>(&'a OnThreads, u64);

impl OnThreads {
    /// Runs a handler of this subscription so that whatever else waits for a thread does not wait for this one.
    pub(crate) fn run<T>(&self, id: &str, work: impl Future<Output = T>) -> impl Future<Output = T> {
        let mut work = Box::pin(work);
        poll_fn(move |context| {
            let _on_thread = self.begin(id);
            match Handle::current().runtime_flavor() {
                // The other tasks of this thread are taken over by another one.
                RuntimeFlavor::MultiThread => tokio::task::block_in_place(|| work.as_mut().poll(context)),
                // There is only this one.
                _ => work.as_mut().poll(context),
            }
        })
    }

    fn begin(&self, id: &str) -> OnThread<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, (id.to_owned(), Instant::now()));
        OnThread(self, number)
    }

    /// The subscriptions whose handlers block their thread, and for how long.
    fn blocking(&self) -> HashMap<String, Duration> {
        let mut blocking = HashMap::new();
        for (id, since) in self.lock().values().filter(|(_, since)| since.elapsed() >= BLOCKS_AFTER) {
            let longest = blocking.entry(id.clone()).or_insert(Duration::ZERO);
            *longest = since.elapsed().max(*longest);
        }
        blocking
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, (String, Instant)>> {
        // Every change is complete before anything can panic.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for OnThread<'_> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

/// Writes down which handlers block, and takes it back when they do not any more, until told to stop.
pub(crate) async fn keep_noting(engine: Engine, stopping: watch::Receiver<bool>) {
    let mut noted = HashSet::new();
    while !stopped_within(LOOK, stopping.clone()).await {
        let blocking = engine.on_threads().blocking();
        if blocking.is_empty() && noted.is_empty() {
            continue;
        }
        let Ok(now) = engine.clock().now().await else { continue };
        for (id, length) in &blocking {
            let since = before(now, *length);
            if noted.insert(id.clone()) {
                tracing::warn!(subscription = id, "the handler of {id} blocks its thread since {since}");
            }
            stalls::note_at_once(&engine, id, &format!("handler blocks since {since}")).await;
        }
        for id in noted.extract_if(|id| !blocking.contains_key(id)).collect::<Vec<_>>() {
            stalls::take_back(&engine, &id).await;
        }
    }
}

/// To the second: what is said again and again should not look as if it changed.
fn before(now: Timestamp, length: Duration) -> Timestamp {
    let micros = now.as_micros().saturating_sub(i64::try_from(length.as_micros()).unwrap_or(i64::MAX));
    Timestamp::from_micros(micros - micros.rem_euclid(1_000_000))
}
