//! Whatever gets in the way of appenders and readers, nothing is lost, doubled or put out of order, and nobody waits
//! for a stranger (S-09, S-10): the matrix of `bench disturb` in its shortest form, a test for each disturbance.

use std::time::Duration;

use bench::disturb::{ChildProgram, Disturbance, Place, Plan, Way, run};
use testkit::{Cluster, TestDatabase, own_postgres_or_left_out, postgres_or_left_out};

use crate::program;
use crate::safe_head::mutants::{take_lock_after_draw, take_lock_before_stream};

const APPENDERS: usize = 8;
/// Long enough for hundreds of appends and the whole disturbance.
const SPAN: Duration = Duration::from_millis(700);
/// Between two appends: a test machine is busy, and who is only slow shall not look like who waits.
const THINK: Duration = Duration::from_millis(2);
/// Who waits for a stranger waits for ever.
const DELAY_BOUND: Duration = Duration::from_secs(10);
/// So often a mutant may try to get away.
const RUNS_OF_A_MUTANT: usize = 10;

/// Disturbs each way to append, in a log of its own.
async fn all_is_well(disturbance: Disturbance, server: Option<&str>, cluster: Option<&Cluster>) {
    for way in disturbance.ways() {
        let database = match server {
            Some(url) => TestDatabase::schema_in(url).await,
            None => TestDatabase::sqlite(),
        };

        let violations = disturb(&plan(disturbance, *way), database, cluster).await;

        assert_eq!(violations, Vec::<String>::new());
    }
}

fn plan(disturbance: Disturbance, way: Way) -> Plan {
    Plan {
        disturbance,
        way,
        appenders: APPENDERS,
        span: SPAN,
        think: THINK,
        delay_bound: DELAY_BOUND,
        catch_up_limit: DELAY_BOUND,
    }
}

async fn disturb(plan: &Plan, database: TestDatabase, cluster: Option<&Cluster>) -> Vec<String> {
    let child = ChildProgram(program::beside_the_tests("bench"));
    let outcome = run(plan, &Place { database, cluster, child: &child }).await.unwrap();
    println!("{outcome}");
    outcome.violations()
}

/// A test for each disturbance of a database.
macro_rules! disturbances {
    ($database:ident: $($name:ident $disturbance:ident,)+) => {
        mod $database {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    $database(Disturbance::$disturbance).await;
                }
            )+
        }
    };
}

async fn sqlite(disturbance: Disturbance) {
    all_is_well(disturbance, None, None).await;
}

async fn postgres(disturbance: Disturbance) {
    if disturbance.breaks_the_server() {
        let Some(cluster) = own_postgres_or_left_out(disturbance.name()) else { return };
        all_is_well(disturbance, Some(&cluster.url("postgres")), Some(&cluster)).await;
    } else if let Some(url) = postgres_or_left_out(disturbance.name()) {
        all_is_well(disturbance, Some(url), None).await;
    }
}

disturbances! { sqlite:
    s09_nothing Nothing,
    s10_unrelated_reader UnrelatedReader,
    s10_second_process_that_writes_own_tables OtherProcess,
    s09_rollbacks Rollbacks,
    s09_savepoints_rolled_back Savepoints,
    s09_killed_process KilledProcess,
    s09_several_streams SeveralStreams,
}

disturbances! { postgres:
    s09_nothing Nothing,
    s10_unrelated_writer UnrelatedWriter,
    s10_unrelated_reader UnrelatedReader,
    s10_writer_in_another_database OtherDatabase,
    s10_appender_that_waits_for_a_locked_stream LockedStream,
    s10_idle_appender IdleAppender,
    s09_prepared Prepared,
    s09_prepared_across_a_crash PreparedAcrossCrash,
    s09_rollbacks Rollbacks,
    s09_savepoints_rolled_back Savepoints,
    s09_terminated_backend Terminated,
    s09_killed_backend KilledBackend,
    s09_killed_process KilledProcess,
    s09_fast_restart FastRestart,
    s09_immediate_restart ImmediateRestart,
    s09_several_streams SeveralStreams,
    s09_four_sessions_shared SharedSessions,
}

/// Alone, and with so many that commits share the disk all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_one_appender_and_sixty_four() {
    let Some(url) = postgres_or_left_out("s09_one_appender_and_sixty_four") else { return };
    for (appenders, way) in [(1, Way::Raw), (1, Way::Append), (64, Way::Raw), (64, Way::Append)] {
        let think = THINK * u32::try_from(appenders).unwrap();
        let plan = Plan { appenders, think, ..plan(Disturbance::Nothing, way) };

        let violations = disturb(&plan, TestDatabase::schema_in(url).await, None).await;

        assert_eq!(violations, Vec::<String>::new(), "{appenders} by {way:?}");
    }
}

/// Tests of the tests: the matrix must notice an append that is known to be wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_mutant_append_that_takes_the_lock_after_the_draw_does_not_pass() {
    let name = "s09_mutant_append_that_takes_the_lock_after_the_draw_does_not_pass";
    let mut violations = Vec::new();
    // Mostly the first run tells; a machine that is very busy appends too little to lose much.
    for _ in 0..RUNS_OF_A_MUTANT {
        let Some(database) = TestDatabase::postgres(name).await else { return };
        database.store().await;
        take_lock_after_draw(&database).await;
        violations = disturb(&plan(Disturbance::Nothing, Way::Raw), database, None).await;
        if violations.iter().any(|violation| violation.contains("lost")) {
            return;
        }
    }
    panic!("not caught: {violations:?}");
}

/// And a reader that waits for a stranger, since an appender does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_mutant_append_that_takes_the_lock_before_the_stream_does_not_pass() {
    let name = "s10_mutant_append_that_takes_the_lock_before_the_stream_does_not_pass";
    let Some(database) = TestDatabase::postgres(name).await else { return };
    database.store().await;
    take_lock_before_stream(&database).await;
    let plan = Plan { catch_up_limit: SPAN, ..plan(Disturbance::LockedStream, Way::Raw) };

    let violations = disturb(&plan, database, None).await;

    assert!(violations.iter().any(|violation| violation.contains("lost")), "{violations:?}");
}
