//! Rows that many tasks ask for at the same moment are read together: a hint wakes every subscription of a worker, and
//! each looks at its row.
//!
//! Whoever asks gets its row as it was after it asked, never an older one. Where reading all fails, each reads its own: a
//! broken row meets only its subscription.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use store::Database;
use tokio::sync::Mutex;

use crate::records::{self, RecordError};
use crate::subscription::Subscription;

/// Clones are handles to the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Counts questions and reads, to tell which came first.
    now: AtomicU64,
    /// How many ask at the moment.
    asking: AtomicUsize,
    last: Mutex<Read>,
}

/// The last read of all rows, and when it began.
#[derive(Debug, Default)]
struct Read {
    began: u64,
    /// None: it failed.
    rows: Option<HashMap<String, Subscription>>,
}

/// One who asks.
struct Asking<'a>(&'a AtomicUsize);

impl<'a> Asking<'a> {
    fn among(asking: &'a AtomicUsize) -> Self {
        asking.fetch_add(1, Ordering::SeqCst);
        Self(asking)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Rows {
    /// The row of a subscription.
    pub(crate) async fn load(
        &self,
        database: &Database,
        id: &str,
    ) -> Result<Option<Subscription>, RecordError> {
        let _asking = Asking::among(&self.0.asking);
        let asked = self.tick();
        let mut last = self.0.last.lock().await;
        if last.began < asked && self.0.asking.load(Ordering::SeqCst) > 1 {
            let began = self.tick();
            let rows = records::load_all(database).await.ok();
            let by_id = |row: Subscription| (row.id.clone(), row);
            *last = Read { began, rows: rows.map(|rows| rows.into_iter().map(by_id).collect()) };
        }
        match &last.rows {
            Some(rows) if last.began > asked => Ok(rows.get(id).cloned()),
            // Nobody else asks, or all cannot be read: the others need not wait for this.
            _ => {
                drop(last);
                records::load(database, id).await
            }
        }
    }

    fn tick(&self) -> u64 {
        self.0.now.fetch_add(1, Ordering::SeqCst) + 1
    }
}
