//! Operations that must succeed for everybody: for tests and for development, where a failure that is only written
//! down would be overlooked.

use std::fmt;

use crate::engine::{Outcome, Report};
use crate::subscription::Failure;

/// The subscriptions that failed in an operation, each with what went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionsFailed(pub Vec<(String, Failure)>);

/// The report of an operation, unless something in it failed: then all that did. Whatever else became of subscriptions
/// (busy, refused, set aside as dead letters) is for the caller to look at.
pub fn none_failed(report: Report) -> Result<Report, SubscriptionsFailed> {
    let failure = |outcome: &Outcome| match outcome {
        Outcome::Failed { failure } | Outcome::Removed { failure: Some(failure) } => Some(failure.clone()),
        _ => None,
    };
    let failed: Vec<(String, Failure)> =
        report.iter().filter_map(|(id, outcome)| Some((id.clone(), failure(outcome)?))).collect();
    if failed.is_empty() { Ok(report) } else { Err(SubscriptionsFailed(failed)) }
}

impl fmt::Display for SubscriptionsFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (id, failure)) in self.0.iter().enumerate() {
            let place = failure.event.as_ref().map_or_else(String::new, |event| {
                format!(" at position {} ({})", event.position, event.event_type)
            });
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{id} failed{place}: {}", failure.chain.join(": "))?;
        }
        Ok(())
    }
}

impl std::error::Error for SubscriptionsFailed {}
