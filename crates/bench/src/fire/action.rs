//! What happens in a run, drawn before it begins: nothing that comes of one action changes the next.

use std::time::Duration;

use testkit::Random;

use super::Plan;
use super::subscribers::{HAPPENED, IDS, OTHER, POISON};

/// The longest pause between two actions, in microseconds: about what a few units take.
const LONGEST_PAUSE_US: u64 = 25_000;
/// Few enough that poison meets others of its stream.
const STREAMS: [&str; 3] = ["fire-1", "fire-2", "fire-3"];

/// What happens. A number says which one, of however many there are.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Append {
        stream: &'static str,
        types: Vec<&'static str>,
    },
    Start {
        seed: u64,
    },
    Kill {
        which: usize,
    },
    Stop {
        which: usize,
    },
    /// An administrator ends a session.
    Terminate {
        which: usize,
    },
    /// A process of the server is killed, after which it recovers.
    KillBackend {
        which: usize,
    },
    /// The server crashes and is started again.
    Restart,
    Pause {
        id: &'static str,
    },
    Reactivate {
        id: &'static str,
    },
    Remove,
    Skip,
    Retry,
    Discard,
    Advance {
        seconds: u64,
    },
}

/// The actions of a run, each with the pause before it.
pub(super) fn schedule(plan: &Plan, breaks_the_server: bool) -> Vec<(Duration, Action)> {
    let mut random = Random::from_seed(plan.seed);
    // A worker and something to do come first: a run without them tells nothing.
    let mut actions = vec![Action::Start { seed: random.below(u64::MAX) }, append(&mut random)];
    while actions.len() < plan.actions {
        actions.push(draw(&mut random, breaks_the_server));
    }
    let mut pauses = Random::from_seed(!plan.seed);
    let pause = |action| (Duration::from_micros(pauses.below(LONGEST_PAUSE_US)), action);
    actions.into_iter().map(pause).collect()
}

fn draw(random: &mut Random, breaks_the_server: bool) -> Action {
    let which = usize::try_from(random.below(1_000)).unwrap_or(0);
    let id = IDS[which % IDS.len()];
    match random.below(100) {
        0..30 => append(random),
        30..44 => Action::Start { seed: random.below(u64::MAX) },
        44..54 => Action::Kill { which },
        54..58 => Action::Stop { which },
        58..66 => Action::Pause { id },
        66..78 => Action::Reactivate { id },
        78..81 => Action::Remove,
        81..84 => Action::Skip,
        84..87 => Action::Retry,
        87..89 => Action::Discard,
        89..95 => Action::Advance { seconds: random.below(3) },
        95..99 if breaks_the_server => Action::Terminate { which },
        99 if breaks_the_server && which % 3 == 0 => Action::Restart,
        99 if breaks_the_server && which % 3 == 1 => Action::KillBackend { which },
        _ => append(random),
    }
}

fn append(random: &mut Random) -> Action {
    let stream = STREAMS[usize::try_from(random.below(3)).unwrap_or(0)];
    let types = (0..=random.below(6)).map(|_| match random.below(12) {
        0 => POISON,
        1 => OTHER,
        _ => HAPPENED,
    });
    Action::Append { stream, types: types.collect() }
}
