//! Tests of the tests (S-09): the judge must catch every reader, and every way to append, that is known to be wrong.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, Executor, PgConnection, PgPool};
use store::{Filter, Position, Store};
use testkit::{Delivered, Findings, Random, Read, TestDatabase, WANTED, Wanted};
use testkit::{judge, judge_with, own_postgres_or_left_out, writers};
use tokio::time::timeout;

use super::model::{Model, Mutation};
use super::{read, reads_on_beside_a_waiting_appender};

/// A mutant is caught long before this, mostly in its first run.
const CAUGHT_WITHIN: Duration = Duration::from_secs(60);
/// Runs in which the model must make no mistake.
const RUNS: u64 = 3;
/// With this the functions of the log take the append lock.
const TAKE_LOCK: &str =
    "PERFORM pg_advisory_xact_lock_shared(1214607969, 'herald_positions'::regclass::oid::integer);";

/// Repeats runs, each in a database of its own, until events are lost.
async fn caught(name: &str, run: impl AsyncFn(TestDatabase, u64) -> Findings) {
    let Some(_) = testkit::postgres_or_left_out(name) else { return };
    let start = Random::seed();
    let until_caught = async {
        for number in 0.. {
            let database = TestDatabase::postgres(name).await.unwrap();
            let findings = run(database, start.wrapping_add(number)).await;
            assert_eq!((findings.twice, findings.unfounded), (0, 0), "{findings:?}");
            if findings.lost > 0 {
                println!("caught in run {number}: {findings:?}");
                return;
            }
        }
    };
    timeout(CAUGHT_WITHIN, until_caught).await.expect("the judge catches a mutant");
}

async fn run_of_model(database: &TestDatabase, seed: u64, mutation: Option<Mutation>) -> Findings {
    database.store().await;
    let model = Model::new(database.url(), mutation);
    judge(database, seed, Wanted::All, async |after| model.read(after).await).await
}

async fn model_is_caught(name: &str, mutation: Mutation) {
    caught(name, async |database, seed| run_of_model(&database, seed, Some(mutation)).await).await;
}

/// If it were not right unbroken, it would prove nothing to catch it broken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_the_model_reader_makes_no_mistake_unless_broken() {
    let name = "s09_the_model_reader_makes_no_mistake_unless_broken";
    let start = Random::seed();
    for run in 0..RUNS {
        let Some(database) = TestDatabase::postgres(name).await else { return };
        assert_eq!(run_of_model(&database, start.wrapping_add(run), None).await, Findings::default());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_mutant_reader_that_skips_holes_is_caught() {
    model_is_caught("s09_mutant_reader_that_skips_holes", Mutation::SkipsHoles).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_mutant_reader_that_waits_for_nobody_is_caught() {
    model_is_caught("s09_mutant_reader_that_waits_for_nobody", Mutation::WaitsForNobody).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_mutant_reader_that_notes_the_holders_before_the_page_is_caught() {
    model_is_caught("s09_mutant_reader_that_notes_the_holders", Mutation::HoldersBeforePage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_mutant_reader_that_looks_again_in_one_snapshot_is_caught() {
    model_is_caught("s09_mutant_reader_that_looks_again", Mutation::OneSnapshot).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_mutant_reader_that_knows_holders_by_process_is_caught() {
    model_is_caught("s09_mutant_reader_that_knows_holders", Mutation::KnowsHoldersByProcess).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_mutant_filtered_reader_without_a_bound_is_caught() {
    caught("s09_mutant_filtered_reader_without_a_bound", async |database, seed| {
        let store = database.store().await;
        judge(&database, seed, Wanted::OfType, async |after| read_of_type(&store, after).await).await
    })
    .await;
}

/// What has the type right now, without a thought of what is still being committed.
async fn read_of_type(store: &Store, after: Position) -> Read {
    let sql = "SELECT position, id, stream, version FROM herald_events
                WHERE position > $1 AND type = $2 ORDER BY position LIMIT 20";
    let rows: Vec<(Position, uuid::Uuid, String, i64)> =
        store.database().fetch_all(sql, (after, WANTED)).await.unwrap();
    let delivered = |(position, id, stream, version)| Delivered { position, id, stream, version };
    let events: Vec<Delivered> = rows.into_iter().map(delivered).collect();
    let go_on_after = events.last().map_or(after, |event| event.position);
    Read { events, go_on_after }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_mutant_append_that_takes_the_lock_after_the_draw_is_caught() {
    caught("s09_mutant_append_that_takes_the_lock_after", async |database, seed| {
        let store = database.store().await;
        take_lock_after_draw(&database).await;
        judge(&database, seed, Wanted::All, async |after| read(&store, &Filter::all(), after).await).await
    })
    .await;
}

/// Nothing is lost then, but a reader waits for who waits for somebody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s10_mutant_append_that_takes_the_lock_before_the_stream_is_caught() {
    let name = "s10_mutant_append_that_takes_the_lock_before";
    let Some(database) = TestDatabase::postgres(name).await else { return };
    let store = database.store().await;
    take_lock_before_stream(&database).await;

    assert!(!reads_on_beside_a_waiting_appender(&database, &store).await);
}

/// Each session would keep numbers in stock, and positions no longer be drawn in the order of time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_mutant_sequence_that_caches_is_caught() {
    caught("s09_mutant_sequence_that_caches", async |database, seed| {
        let store = database.store().await;
        // Whoever opens the log afterwards is refused, and rightly so.
        let writers = writers(&database).await;
        let mut raw = PgConnection::connect(database.url()).await.unwrap();
        raw.execute("ALTER SEQUENCE herald_positions CACHE 32").await.unwrap();
        judge_with(writers, seed, Wanted::All, async |after| read(&store, &Filter::all(), after).await).await
    })
    .await;
}

/// A standby shows what was committed and nobody's locks: every hole looks dead there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s09_mutant_reader_that_trusts_a_standby_is_caught() {
    let name = "s09_mutant_reader_that_trusts_a_standby";
    let Some(primary) = own_postgres_or_left_out(name) else { return };
    let standby = primary.start_standby().unwrap();
    let start = Random::seed();
    let until_caught = async {
        for number in 0.. {
            let database = TestDatabase::schema_in(&primary.url("postgres")).await;
            let there = database.url().replacen(&primary.url("postgres"), &standby.url("postgres"), 1);
            let replica = PgPool::connect_lazy(&there).unwrap();
            let store = database.store().await;
            let model = Model::new(&there, Some(Mutation::TrustsStandby));
            // It has everything that was committed before each read: what is lost is not only late.
            let reader = async |after| {
                let sql = "SELECT CAST(pg_current_wal_lsn() AS text)";
                let (written,) =
                    store.database().fetch_optional::<(String,)>(sql, ()).await.unwrap().unwrap();
                let has_all = "SELECT pg_last_wal_replay_lsn() >= CAST($1 AS pg_lsn)";
                while !sqlx::query_scalar::<_, bool>(has_all)
                    .bind(&written)
                    .fetch_one(&replica)
                    .await
                    .unwrap()
                {
                    tokio::task::yield_now().await;
                }
                model.read(after).await
            };
            let findings = judge(&database, start.wrapping_add(number), Wanted::All, reader).await;
            if findings.lost > 0 {
                println!("caught in run {number}: {findings:?}");
                return;
            }
        }
    };
    timeout(CAUGHT_WITHIN, until_caught).await.expect("the judge catches a mutant");
}

/// From here on, whoever appends takes the append lock some time after its positions were drawn.
pub(crate) async fn take_lock_after_draw(database: &TestDatabase) {
    mutate_appends(database, |text| {
        let at = text.rfind("\nEND").expect("a function has an end");
        format!(
            "{}\nPERFORM pg_sleep(0.02 * random()); {TAKE_LOCK}{}",
            without_lock(&text[..at]),
            &text[at..]
        )
    })
    .await;
}

/// From here on, whoever appends takes the append lock before it waits for its stream.
pub(crate) async fn take_lock_before_stream(database: &TestDatabase) {
    mutate_appends(database, |text| {
        let text = without_lock(text);
        assert!(text.contains("\nBEGIN\n"), "{text}");
        text.replacen("\nBEGIN\n", &format!("\nBEGIN\n{TAKE_LOCK}\n"), 1)
    })
    .await;
}

/// Replaces every function that takes the append lock, in this database only, by what `mutate` makes of its text.
async fn mutate_appends(database: &TestDatabase, mutate: impl Fn(&str) -> String) {
    let mut raw = PgConnection::connect(database.url()).await.unwrap();
    let functions: Vec<String> = sqlx::query_scalar(
        "SELECT pg_get_functiondef(oid) FROM pg_proc
          WHERE pronamespace = current_schema()::regnamespace AND prosrc LIKE '%pg_advisory_xact_lock_shared%'",
    )
    .fetch_all(&mut raw)
    .await
    .unwrap();
    assert!(!functions.is_empty(), "the log has functions to append with");
    for text in functions {
        let mutant = mutate(&text);
        assert_ne!(mutant, text);
        raw.execute(sqlx::raw_sql(AssertSqlSafe(mutant))).await.unwrap();
    }
}

/// The text of a function that takes the append lock, which must stand there once.
fn without_lock(text: &str) -> String {
    assert_eq!(text.matches(TAKE_LOCK).count(), 1, "{text}");
    text.replace(TAKE_LOCK, "")
}
