//! Appends that share a commit share nothing else (S-07): each has its own answer, and none is lost or doubled when
//! the connection dies under them all (S-26).

use store::{AppendError, Appended, ExpectedVersion, NewEvent, Store, Version};
use testkit::{TestDatabase, both};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::given::{all_events, event, stream};

const GOOD: usize = 40;

/// Appends all at the same time, and answers in their order.
async fn at_once(
    store: &Store,
    appends: Vec<(String, ExpectedVersion, Vec<NewEvent>)>,
) -> Vec<Result<Appended, AppendError>> {
    let calls = appends.into_iter().map(|(name, expected, events)| {
        let store = store.clone();
        tokio::spawn(async move { store.append(&stream(&name), expected, events).await })
    });
    let calls: Vec<_> = calls.collect();
    let mut answers = Vec::new();
    for call in calls {
        answers.push(call.await.unwrap());
    }
    answers
}

both! {
    async fn s07_each_append_of_a_group_has_its_own_answer(database: TestDatabase) {
        let store = database.store().await;
        let (first, used) = (vec![event(1), event(2)], event(3));
        store.append(&stream("first"), ExpectedVersion::NoStream, first.clone()).await.unwrap();
        store.append(&stream("used"), ExpectedVersion::NoStream, vec![used.clone()]).await.unwrap();
        let good = |number: usize| (format!("good-{number}"), ExpectedVersion::NoStream, vec![event(4)]);
        let mut appends: Vec<_> = (0..GOOD).map(good).collect();
        let conflict = ("used".to_owned(), ExpectedVersion::Exactly(Version(7)), vec![event(5)]);
        let repeated = ("first".to_owned(), ExpectedVersion::NoStream, first);
        // Only the unique index finds this one, after everything else was written.
        let poison = ("poison".to_owned(), ExpectedVersion::NoStream, vec![event(6), used]);
        appends.splice(20..20, [conflict, repeated, poison]);

        let mut answers = at_once(&store, appends).await;

        let odd: Vec<_> = answers.splice(20..23, []).collect();
        assert!(matches!(&odd[0], Err(AppendError::WrongVersion { actual: Some(Version(0)), .. })), "{:?}", odd[0]);
        assert!(matches!(&odd[1], Ok(Appended { replayed: true, version: Some(Version(1)), .. })), "{:?}", odd[1]);
        assert!(matches!(&odd[2], Err(AppendError::IdReused { .. })), "{:?}", odd[2]);
        for answer in answers {
            assert_eq!(answer.unwrap().version, Some(Version(0)));
        }
        assert_eq!(all_events(&store).await.len(), 3 + GOOD);
    }
}

/// If each had a commit of its own, the tests here would show nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s07_appends_at_the_same_time_share_a_commit() {
    let Some(database) = TestDatabase::postgres("s07_appends_at_the_same_time_share_a_commit").await else {
        return;
    };
    let store = database.store().await;
    let good = |number: usize| (format!("good-{number}"), ExpectedVersion::Any, vec![event(1)]);

    let answers = at_once(&store, (0..GOOD).map(good).collect()).await;

    assert!(answers.iter().all(Result::is_ok));
    let sql = "SELECT COUNT(DISTINCT CAST(xmin AS text)) FROM herald_events";
    let (commits,): (i64,) = store.database().fetch_optional(sql, ()).await.unwrap().unwrap();
    assert!(commits < i64::try_from(GOOD / 2).unwrap(), "{commits} commits for {GOOD} appends");
}

/// Whoever learns that the outcome is unknown repeats the call with the same ids, and has it once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s26_groups_whose_connection_dies_are_in_the_log_once() {
    let Some(database) = TestDatabase::postgres("s26_groups_whose_connection_dies").await else { return };
    let (store, other) = (database.store().await, database.open().await);
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    for number in 0..16 {
        let (store, stopped) = (store.clone(), stopped.clone());
        tasks.spawn(async move {
            let mut appends = 0;
            while !*stopped.borrow() {
                let events = vec![event(1)];
                while let Err(error) =
                    store.append(&stream(&format!("s-{number}")), ExpectedVersion::Any, events.clone()).await
                {
                    assert_eq!(store::Fault::of(&error), store::Fault::Transient, "{error:?}");
                }
                appends += 1;
            }
            appends
        });
    }
    let end_appends = "SELECT COUNT(pg_terminate_backend(pid)) FROM pg_stat_activity
                        WHERE query LIKE '%herald_append%' AND state = 'active' AND pid <> pg_backend_pid()
                          AND datname = current_database()
                          AND pid IN (SELECT pid FROM pg_locks WHERE relation = 'herald_events'::regclass)";
    let mut ended = 0;
    while ended < 5 {
        ended += other.database().fetch_optional::<(i64,)>(end_appends, ()).await.unwrap().unwrap().0;
        if let Some(task) = tasks.try_join_next() {
            panic!("an appender has come to its end: {task:?}");
        }
    }
    stop.send_replace(true);
    let appends: usize = tasks.join_all().await.into_iter().sum();

    assert_eq!(all_events(&store).await.len(), appends);
}
