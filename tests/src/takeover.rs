//! Another worker goes on: `bench takeover` and `bench isolation` in their shortest form, judged generously.

use std::time::Duration;

use bench::disturb::ChildProgram;
use bench::isolation::{Company, delays};
use bench::takeover::{after_kill, after_stop};
use subscription_engine::{Criteria, Standing};
use testkit::{TestDatabase, both};

use crate::program;

/// Far more than it takes, and less than it would without any signal.
const GENEROUS: Duration = Duration::from_secs(20);
const EVENTS: usize = 20;

both! {
    /// E-60: whoever is killed in the middle of a unit loses its claim with it.
    async fn e60_another_worker_goes_on_after_a_kill(database: TestDatabase) {
        let child = ChildProgram(program::beside_the_tests("bench"));
        let gap = after_kill(&database, &child).await.unwrap();
        assert!(gap < GENEROUS, "{gap:?}");
    }

    /// E-61: whoever is asked to stop hands over; everything is handled once.
    async fn e61_another_worker_goes_on_after_a_stop(database: TestDatabase) {
        let child = ChildProgram(program::beside_the_tests("bench"));
        let gap = after_stop(&database, &child).await.unwrap();
        assert!(gap < GENEROUS, "{gap:?}");
    }
}

/// E-23, E-25, E-62: as many blocked threads as there are, and the others go on; who blocks is shown.
async fn nobody_waits_for_those_that_get_on_badly(database: TestDatabase) {
    let shown = async |engine: &subscription_engine::Engine| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        for id in ["blocking_1", "blocking_2"] {
            loop {
                let overview = engine.status(&Criteria::id(id)).await.unwrap().remove(0);
                let Standing::Stalled(stall) = overview.standing else {
                    assert!(tokio::time::Instant::now() < deadline, "{:?}", overview.standing);
                    tokio::task::yield_now().await;
                    continue;
                };
                assert!(stall.to_string().starts_with("handler blocks since 20"), "{stall}");
                break;
            }
        }
    };
    let delays = delays(&database, Company::Bad, EVENTS, shown).await.unwrap();
    assert_eq!(delays.len(), EVENTS * 3);
    assert!(delays.iter().all(|delay| *delay < GENEROUS), "{delays:?}");
}

mod e23_e25_nobody_waits_for_those_that_get_on_badly {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sqlite() {
        nobody_waits_for_those_that_get_on_badly(TestDatabase::sqlite()).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn postgres() {
        let name = "e23_e25_nobody_waits_for_those_that_get_on_badly";
        let Some(database) = TestDatabase::postgres(name).await else { return };
        nobody_waits_for_those_that_get_on_badly(database).await;
    }
}
