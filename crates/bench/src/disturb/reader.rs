//! A reader as any program is one: reads on from where it stands, and waits where there is nothing.

use std::time::Duration;

use store::{Filter, Position, Store};
use testkit::Delivered;
use tokio::sync::watch;
use tokio::time::Instant;

use super::appender::AGAIN_AFTER;

/// Events of one page: small enough that pages end in the midst of what is being written.
const PAGE: usize = 500;
/// Who gets no hint, as of a commit that another session has prepared, looks again after this time.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Until when a reader reads.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    /// Appends are under way.
    Unknown,
    /// To the end of the log, which is here.
    Reach { position: Position, deadline: Instant },
}

/// What a reader delivered, and when.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) delivered: Vec<(Delivered, Instant)>,
    pub(super) errors: Vec<String>,
}

impl Reading {
    /// Without the times.
    pub(super) fn events(&self) -> Vec<Delivered> {
        self.delivered.iter().map(|(event, _)| event.clone()).collect()
    }
}

/// Reads until the goal is reached or its time is over.
pub(super) async fn read(store: Store, filter: Filter, goal: watch::Receiver<Goal>) -> Reading {
    let mut reading = Reading::default();
    let mut after = Position::START;
    let mut wake = store.wake();
    loop {
        if let Goal::Reach { position, deadline } = *goal.borrow()
            && (after >= position || Instant::now() > deadline)
        {
            return reading;
        }
        wake.arm();
        match store.read(&filter, after, PAGE).await {
            Ok(page) => {
                let now = Instant::now();
                let nothing_new = page.scanned_to == after;
                after = page.scanned_to;
                reading.delivered.extend(page.events.into_iter().map(|event| (event.into(), now)));
                if nothing_new {
                    wake.wait(LOOK_AGAIN_AFTER).await;
                }
            }
            Err(error) => {
                reading.errors.push(error.to_string());
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        }
    }
}
