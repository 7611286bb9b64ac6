//! What an operator may do about a subscription, the most helpful first.

use store::StoreError;
use subscription_engine::{Overview, State};

use crate::cli::findings::way_out;
use crate::cli::next::{Next, next};

/// What to type next. Where the log itself is not worked on, that comes first: until then the rest is refused.
pub(super) fn commands(overview: &Overview, refusals: &[StoreError]) -> Vec<Next> {
    let mut commands: Vec<Next> = refusals.iter().map(way_out).collect();
    commands.extend(for_state(overview));
    let id = &overview.subscription.id;
    if overview.subscription.letters.open > 0 {
        commands.push(next(format!("herald dlq list {id}")));
    }
    if overview.effects.held > 0 {
        commands.push(next(format!("herald effects list --state held --subscription {id}")));
    }
    if overview.timers.held + overview.timers.overdue > 0 {
        commands.push(next(format!("herald sub timers {id}")));
    }
    if !overview.changes.is_empty() {
        let accept = next(format!("herald sub refresh {id} --accept-definition"));
        commands.push(accept.when("if what it has made is right"));
    }
    commands
}

fn for_state(overview: &Overview) -> Vec<Next> {
    let id = &overview.subscription.id;
    let reactivate = || next(format!("herald sub reactivate {id}"));
    let skip = |position| {
        next(format!("herald sub skip {id} {position} --reason …")).when("to go on without that event")
    };
    let pause = || next(format!("herald sub pause {id}")).when("to leave it alone");
    match &overview.subscription.state {
        State::Error { failure, .. } => match (&failure.event, overview.subscription.failing_position) {
            (Some(event), _) => vec![
                next(format!("herald events show {}", event.position)),
                reactivate().when("after a fix"),
                skip(event.position),
                pause(),
            ],
            // Its row cannot be read: trying again does not help as long as it stays as it is.
            (None, Some(position)) => vec![
                skip(position),
                next(format!("herald events show {position} --raw")).when("what is stored there"),
                next(format!("herald store verify --from {position}")).when("what else is damaged"),
                reactivate().when("once the event can be read again"),
                pause(),
            ],
            (None, None) => vec![reactivate().when("after a fix"), pause()],
        },
        State::Paused { .. } | State::Finished => vec![reactivate()],
        State::Detached { .. } => vec![
            reactivate().when("if its subscriber is back"),
            next(format!("herald sub remove {id}")).when("if it is not needed any more"),
        ],
        State::New => vec![next(format!("herald sub setup {id}")).when("a worker does it by itself")],
        State::Active | State::Booting if !overview.has_worker => vec![next("herald worker")],
        State::Active | State::Booting => Vec::new(),
    }
}
