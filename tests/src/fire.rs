//! Exactly once under fire: `bench fire` in its shortest form, on both databases.

use std::time::Duration;

use bench::disturb::ChildProgram;
use bench::fire::{Plan, run_many};
use testkit::{Cluster, Random, own_postgres_or_left_out};

use crate::program;

/// A hundred on both databases together, as far as a busy machine gets to them.
const RUNS: u64 = 50;
const ACTIONS: usize = 25;
const BEGUN_WITHIN: Duration = Duration::from_secs(45);

async fn nothing_is_lost_or_doubled(cluster: Option<&Cluster>) {
    let first = Random::seed();
    let plans = (0..RUNS).map(|run| Plan { seed: first.wrapping_add(run), actions: ACTIONS, sabotage: None });
    let child = ChildProgram(program::beside_the_tests("bench"));

    let sum = run_many(plans, BEGUN_WITHIN, cluster, &child).await.unwrap();

    println!("{} runs, {} workers died, {} events", sum.runs, sum.deaths, sum.events);
    assert!(sum.runs > 0 && sum.deaths > 0 && sum.events > 0, "nothing happened: {sum:?}");
    let failed: Vec<String> = sum.failed.iter().map(ToString::to_string).collect();
    assert!(failed.is_empty(), "with {ACTIONS} actions each:\n{}", failed.join("\n"));
}

mod e20_e60_exactly_once_under_fire {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sqlite() {
        nothing_is_lost_or_doubled(None).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres() {
        let Some(cluster) = own_postgres_or_left_out("e20_e60_exactly_once_under_fire") else { return };
        nothing_is_lost_or_doubled(Some(&cluster)).await;
    }
}

/// A test of the test: each of these must be noticed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e20_the_oracle_notices_what_must_not_be() {
    let child = ChildProgram(program::beside_the_tests("bench"));
    let plan = Plan { seed: 1, actions: 12, sabotage: None };
    for (sabotage, noticed) in [
        (None, ""),
        (Some("DELETE FROM fire_filtered WHERE number = 1"), "filtered did not handle"),
        (Some("INSERT INTO fire_removed VALUES (0, 1000000)"), "did handle [1000000]"),
        (Some("UPDATE fire_parking SET number = 1000 WHERE number = 1"), "too late"),
        (
            Some("UPDATE herald_subscriptions SET position = position - 1 WHERE id = 'stopping'"),
            "stopping stands at",
        ),
        (
            Some("UPDATE herald_subscriptions SET position = position + 1 WHERE id = 'stopping'"),
            "the checkpoint of stopping does not fit",
        ),
        (
            Some("DELETE FROM herald_effects WHERE number = (SELECT MIN(number) FROM herald_effects)"),
            "what outside handled does not fit what it planned",
        ),
        (
            Some(
                "UPDATE herald_effects SET state = 'pending' WHERE number = (SELECT MIN(number) FROM herald_effects)",
            ),
            "effects are not done",
        ),
        (
            Some(
                "UPDATE herald_effects SET id = randomblob(16) WHERE number = (SELECT MIN(number) FROM herald_effects)",
            ),
            "effects are done and were never sent",
        ),
        (
            Some("DROP TRIGGER herald_events_never_go; DELETE FROM herald_events WHERE type = 'Fire.Rang'"),
            "rang once",
        ),
    ] {
        let plans = [Plan { sabotage, ..plan }].into_iter();
        let sum = run_many(plans, BEGUN_WITHIN, None, &child).await.unwrap();
        let violations: Vec<&String> = sum.failed.iter().flat_map(|ended| &ended.violations).collect();
        let is_noticed = violations.iter().any(|violation| violation.contains(noticed));
        assert_eq!(sabotage.is_some(), is_noticed, "{sabotage:?}: {violations:?}");
    }
}
