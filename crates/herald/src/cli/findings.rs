//! What is wrong, how badly, and what to type next: the same for `check`, `status` and `doctor`.

use std::time::Duration;

use serde::Serialize;
use store::{BadSequence, PlaceError, Store, StoreError, Timestamp};
use subscription_engine::{Overview, Stall, Standing, State};

use crate::cli::next::{Next, next};
use crate::output::duration;

/// How badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Severity {
    /// Somebody wanted it so, or it can wait.
    Warning,
    /// Somebody must look.
    Problem,
}

/// Something that is not as it should be.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    pub(crate) subscription: Option<String>,
    pub(crate) what: String,
    pub(crate) next: Next,
}

impl Finding {
    pub(crate) fn sentence(&self) -> String {
        match &self.subscription {
            Some(id) => format!("{id}: {}", self.what),
            None => self.what.clone(),
        }
    }
}

/// What keeps the whole log from being worked on.
pub(crate) fn of_store(store: &Store) -> Vec<Finding> {
    let finding = |refusal: &StoreError| Finding {
        severity: Severity::Problem,
        subscription: None,
        what: refusal.to_string(),
        next: way_out(refusal),
    };
    store.refusals().iter().map(finding).collect()
}

/// What ends the reason for which a log is not worked on.
pub(crate) fn way_out(refusal: &StoreError) -> Next {
    match refusal {
        StoreError::Place(PlaceError::Copied { .. }) => {
            next("herald store adopt").when("only if the original does not run any more; else use that")
        }
        StoreError::Place(_) => next("herald store adopt"),
        StoreError::BadSequence(BadSequence::Behind { .. }) => next("herald store verify --fix"),
        _ => next("herald doctor").when("once the statement was run that stands there"),
    }
}

/// What is wrong with how a subscription gets on.
pub(crate) fn of_subscription(overview: &Overview, now: Timestamp) -> Option<Finding> {
    let subscription = &overview.subscription;
    let id = &subscription.id;
    let show = || next(format!("herald sub show {id}"));
    let (severity, what, next) = match (&overview.standing, &subscription.state) {
        (Standing::Idle, State::Paused { .. } | State::Detached { .. }) => {
            (Severity::Warning, format!("is {}", subscription.state.status()), show())
        }
        (Standing::Idle | Standing::Lagging, _) => return None,
        (Standing::Stalled(Stall::Paused { .. }), _) => {
            (Severity::Warning, standing_text(&overview.standing, now), show())
        }
        (Standing::NoWorker, _) => (Severity::Problem, overview.standing.to_string(), next("herald worker")),
        (Standing::Stalled(_), _) => (Severity::Problem, standing_text(&overview.standing, now), show()),
    };
    Some(Finding { severity, subscription: Some(id.clone()), what: on_one_line(&what), next })
}

/// How it gets on, with times as people count them.
pub(crate) fn standing_text(standing: &Standing, now: Timestamp) -> String {
    match standing {
        Standing::Stalled(stall) => format!("stalled: {}", stall_text(stall, now)),
        standing => standing.to_string(),
    }
}

/// Why it does not move, with times as people count them.
pub(crate) fn stall_text(stall: &Stall, now: Timestamp) -> String {
    let text = match stall {
        Stall::Failed { message, next_retry: Some(at) } => match at.since(now) {
            Duration::ZERO => format!("it failed and is about to be tried again: {message}"),
            left => format!("it failed and is tried again in {}: {message}", duration(left)),
        },
        stall => stall.to_string(),
    };
    on_one_line(&text)
}

/// A message of several lines, where each thing has one line.
fn on_one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
