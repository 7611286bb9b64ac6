//! The drawing of the states, compared with the function that knows them.

use std::collections::BTreeSet;

use store::Timestamp;
use subscription_engine::{Failure, State, Transition, next};

const DRAWING: &str = include_str!("../../docs/states.md");

/// Everything that can happen, and the word that the drawing has for it.
fn transitions() -> Vec<(Transition, &'static str)> {
    let at = Timestamp::from_micros(0);
    let failure = Failure { chain: vec!["no".to_owned()], event: None, at };
    vec![
        (Transition::SetUp { skip_booting: false }, "set up"),
        (Transition::SetUp { skip_booting: true }, "set up"),
        (Transition::ReachHead { once: false }, "reached the head"),
        (Transition::ReachHead { once: true }, "reached the head"),
        (Transition::Fail { failure: failure.clone(), next_retry: None }, "failed"),
        (Transition::Fail { failure, next_retry: Some(at) }, "failed"),
        (Transition::Retry, "retried"),
        (Transition::Pause, "paused"),
        (Transition::Reactivate, "reactivated"),
        (Transition::Detach, "detached"),
    ]
}

/// Every step from every state that can be reached from the first one.
fn steps() -> BTreeSet<String> {
    let (mut reached, mut looked_at, mut steps) = (vec![State::New], 0, BTreeSet::new());
    while let Some(state) = reached.get(looked_at).cloned() {
        looked_at += 1;
        for (transition, word) in transitions() {
            let Ok(to) = next(&state, transition) else { continue };
            steps.insert(format!("{} --> {}: {word}", state.status(), to.status()));
            if !reached.contains(&to) {
                reached.push(to);
            }
        }
    }
    steps
}

#[test]
fn e04_the_drawing_shows_exactly_the_steps_that_there_are() {
    let drawn: Vec<&str> = DRAWING.lines().map(str::trim).filter(|line| line.contains("-->")).collect();
    let (first, drawn): (Vec<&str>, Vec<&str>) = drawn.into_iter().partition(|line| line.starts_with("[*]"));
    assert_eq!(first, ["[*] --> new: discovered"]);
    let distinct: BTreeSet<String> = drawn.iter().map(ToString::to_string).collect();
    assert_eq!(distinct.len(), drawn.len(), "an arrow is drawn twice");
    let steps = steps();
    let missing: Vec<_> = steps.difference(&distinct).collect();
    let invented: Vec<_> = distinct.difference(&steps).collect();
    assert!(missing.is_empty() && invented.is_empty(), "not drawn: {missing:?}, not possible: {invented:?}");
}
