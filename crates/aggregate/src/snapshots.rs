//! Snapshots of an aggregate: where its repository begins to read a long stream.
//!
//! They are written beside the commands, by tasks that the repository keeps and waits for at its end, and whatever
//! goes wrong with them is logged and nothing else: without one the events are read from the first on.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use store::{BoxError, InvalidJson, Json, Snapshot, Store, StreamName, Version, messages};
use tokio::task::{JoinError, JoinSet};

/// Snapshots that are written at the same time; more are left for a later command.
const MAX_UNDER_WAY: usize = 4;

/// How the states of an aggregate are kept.
pub(crate) struct Snapshots<S> {
    schema_number: u32,
    /// A snapshot is taken when so many events had to be read after the last one.
    every: i64,
    read: fn(&Json) -> Result<S, BoxError>,
    write: fn(&mut JoinSet<()>, Target, S),
    tasks: Mutex<JoinSet<()>>,
    under_way: UnderWay,
}

/// The streams of which a snapshot is being written.
type UnderWay = Arc<Mutex<HashSet<StreamName>>>;

/// Of what a snapshot is written. Its stream is free for the next one when this is dropped.
struct Target {
    store: Store,
    stream: StreamName,
    version: Version,
    schema_number: u32,
    under_way: UnderWay,
}

impl<S> Snapshots<S> {
    pub(crate) fn new(schema_number: u32, every: u32) -> Self
    where
        S: Serialize + DeserializeOwned + Send + 'static,
    {
        Self {
            schema_number,
            every: i64::from(every.max(1)),
            read: |state| Ok(state.to()?),
            write: |tasks, target, state| {
                tasks.spawn(async move {
                    let written = Json::of(&state);
                    drop(state);
                    target.save(written).await;
                });
            },
            tasks: Mutex::default(),
            under_way: Arc::default(),
        }
    }

    /// The newest state that can be read, and its version. Whatever keeps it from being read costs time only.
    pub(crate) async fn newest(&self, store: &Store, stream: &StreamName) -> Option<(S, Version)> {
        let mut up_to = None;
        // At most as often as snapshots are kept.
        loop {
            let snapshot = match store.snapshot(stream, self.schema_number, up_to).await {
                Ok(found) => found?,
                Err(error) => {
                    warn(stream, "could not be looked for", &error);
                    return None;
                }
            };
            match self.read(stream, &snapshot) {
                Some(state) => return Some((state, snapshot.version)),
                None => up_to = Some(Version(snapshot.version.0 - 1)),
            }
        }
    }

    /// The state in a snapshot, if it can be read.
    pub(crate) fn read(&self, stream: &StreamName, snapshot: &Snapshot) -> Option<S> {
        let ignored = |error: BoxError| {
            warn(stream, &format!("at version {} is ignored", snapshot.version), &*error);
        };
        (self.read)(&snapshot.state).map_err(ignored).ok()
    }

    /// The number of those that can be read.
    pub(crate) fn schema_number(&self) -> u32 {
        self.schema_number
    }

    /// Takes a snapshot in the background, if so many events were read since the last one that it is time.
    pub(crate) fn take(&self, store: &Store, stream: &StreamName, state: S, version: Version, read: i64) {
        if read < self.every {
            return;
        }
        let mut under_way = lock(&self.under_way);
        if under_way.len() >= MAX_UNDER_WAY || !under_way.insert(stream.clone()) {
            return;
        }
        drop(under_way);
        let target = Target {
            store: store.clone(),
            stream: stream.clone(),
            version,
            schema_number: self.schema_number,
            under_way: Arc::clone(&self.under_way),
        };
        let mut tasks = lock(&self.tasks);
        while let Some(done) = tasks.try_join_next() {
            note_panic(done);
        }
        (self.write)(&mut tasks, target, state);
    }

    /// Waits for those that are being written.
    pub(crate) async fn finish(&self) {
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        while let Some(done) = tasks.join_next().await {
            note_panic(done);
        }
    }
}

impl Target {
    async fn save(self, state: Result<Json, InvalidJson>) {
        let saved = match state {
            Ok(state) => {
                let Self { store, stream, version, schema_number, .. } = &self;
                let saved = store.save_snapshot(stream, *version, *schema_number, &state).await;
                saved.map_err(BoxError::from)
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = saved {
            warn(&self.stream, "could not be kept", &*error);
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.stream);
    }
}

impl<S> fmt::Debug for Snapshots<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { schema_number, every, .. } = self;
        f.debug_struct("Snapshots")
            .field("schema_number", schema_number)
            .field("every", every)
            .finish_non_exhaustive()
    }
}

/// A state whose serialisation panics is logged as one that cannot be kept.
fn note_panic(done: Result<(), JoinError>) {
    if let Err(error) = done {
        tracing::error!("a snapshot could not be kept: {error}");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in it is complete before anything can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn warn(stream: &StreamName, what: &str, error: &(dyn std::error::Error + 'static)) {
    let why = messages(error).join(": ");
    tracing::warn!(stream = stream.as_str(), "a snapshot of {stream} {what}: {why}");
}
