//! An errand that is run in the background: many ask for it, and it is run once for all who asked meanwhile.
//!
//! At its end it is run once more if somebody still waits for that, so that a command which ends right after its
//! work leaves nothing undone.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Asks for the errand. Clones ask for the same one.
#[derive(Clone, Debug)]
pub(crate) struct Errand(Arc<watch::Sender<State>>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    is_wanted: bool,
    is_stopped: bool,
}

impl Errand {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(State::default())))
    }

    /// It is to be run. Under load somebody has asked already; waking the task again would only cost.
    pub(crate) fn ask(&self) {
        self.0.send_if_modified(|state| !std::mem::replace(&mut state.is_wanted, true));
    }

    /// Nobody will ask any more: it is run if it is wanted, and that is the end.
    pub(crate) fn stop(&self) {
        self.0.send_modify(|state| state.is_stopped = true);
    }

    /// Runs it whenever it is wanted, but at most once in a pause, until it is stopped.
    pub(crate) async fn run<F: Future<Output = ()>>(self, pause: Duration, errand: impl Fn() -> F) {
        let mut changes = self.0.subscribe();
        loop {
            // The sender lives as long as this task holds it.
            let Ok(now) = changes.wait_for(|state| state.is_wanted || state.is_stopped).await.map(|now| *now)
            else {
                return;
            };
            let mut is_wanted = false;
            self.0.send_if_modified(|state| {
                is_wanted = std::mem::replace(&mut state.is_wanted, false);
                false
            });
            if is_wanted {
                errand().await;
            }
            if now.is_stopped {
                return;
            }
            // The first goes at once; those who ask within the pause share the next one. Who closes does not wait.
            let _ = tokio::time::timeout(pause, changes.wait_for(|state| state.is_stopped)).await;
        }
    }
}
