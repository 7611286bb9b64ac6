//! Running subscriptions right after an append, in the process that appended: for tests, and for small programs that
//! need no worker.

use std::sync::Arc;

use store::{Appended, FollowUp, Following, Store, messages};
use tokio::sync::Mutex;

use crate::engine::{Criteria, Engine};

/// Runs the subscriptions that meet the criteria.
#[derive(Debug)]
struct RunAfterAppend {
    engine: Engine,
    criteria: Criteria,
    limit: Option<u64>,
    /// One run at a time: one that found the subscriptions busy would leave its event to nobody.
    turn: Mutex<()>,
}

impl Engine {
    /// A handle to the log that runs subscriptions after each [`Store::append`], before that answers: those that meet the
    /// criteria and are Active, each up to `limit` events. Set them up and boot them first.
    ///
    /// The append succeeds whatever becomes of them: one that fails is in error as after any run, and if the engine
    /// itself cannot run that is said in the log, and the next run makes up for it. Appends in a transaction that the
    /// caller has begun run nothing, because it may be rolled back.
    pub fn store_that_runs(&self, criteria: Criteria, limit: Option<u64>) -> Store {
        let run = RunAfterAppend { engine: self.clone(), criteria, limit, turn: Mutex::new(()) };
        self.store().clone().with_follow_up(Arc::new(run))
    }
}

impl FollowUp for RunAfterAppend {
    fn follow(&self, _: Appended) -> Following<'_> {
        Box::pin(async {
            let _turn = self.turn.lock().await;
            if let Err(error) = self.engine.run(&self.criteria, self.limit).await {
                let why = messages(&error).join(": ");
                tracing::warn!(
                    "could not run subscriptions after an append: {why}; the next run makes up for it"
                );
            }
        })
    }
}
