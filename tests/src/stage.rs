//! What authors test their subscribers with.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use store::{DomainEvent, ExpectedVersion};
use subscription_engine::{Definition, Subscriber};
use testkit::{Failing, Scripted, Stage, T0, both};

use crate::given::stream;

#[derive(Clone, Serialize, Deserialize)]
struct Asked {
    number: u64,
}

#[derive(Serialize, Deserialize)]
struct Answered {
    number: u64,
}

impl DomainEvent for Asked {
    const TYPE: &'static str = "Test:Asked";
}

impl DomainEvent for Answered {
    const TYPE: &'static str = "Test:Answered";
}

/// Answers each question, and counts how often it is called.
fn answering(calls: &Arc<AtomicU64>) -> Arc<dyn Subscriber> {
    let calls = Arc::clone(calls);
    Arc::new(Scripted::new(Definition::processor("answering").on([Asked::TYPE]), move |events, context| {
        calls.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            for event in events {
                let Some(asked) = event.decode::<Asked>() else { continue };
                let answered = Answered { number: asked?.number };
                context.because_of(event).append_event(
                    &stream("answers"),
                    ExpectedVersion::Any,
                    &answered,
                )?;
            }
            Ok(())
        })
    }))
}

both! {
    /// E-70: given events are handled, also where the process dies again and again; each thing that follows is there
    /// once and in order.
    async fn e70_crashes_change_nothing(database: TestDatabase) {
        let calls = Arc::new(AtomicU64::new(0));
        let stage = Stage::new(database, vec![answering(&calls)]).await;
        for number in 0..20 {
            stage.given("questions", &[Asked { number }]).await;
            stage.run_through_crashes().await;
        }
        let answers = stage.appended().await;
        let numbers: Vec<u64> = answers.iter().map(|event| event.decode::<Answered>().unwrap().unwrap().number).collect();
        assert_eq!(numbers, (0..20).collect::<Vec<_>>());
        // That none of sixty places was struck has no chance.
        assert!(calls.load(Ordering::Relaxed) > 20, "nothing was ever cut off");
    }

    /// E-70: a failure is told, or the test fails with it; the clock is in the author's hand.
    async fn e70_failures_and_the_clock(database: TestDatabase) {
        let failing = Failing::new(Definition::projector("failing"), [1]);
        let stage = Stage::new(database, vec![failing.clone()]).await;
        stage.given("questions", &[Asked { number: 1 }]).await;
        assert_eq!(stage.fails("failing").await.message(), "cannot digest position 1");
        assert_eq!(stage.fails("failing").await.at, T0);
        let stage = Arc::new(stage);
        let running = Arc::clone(&stage);
        let panic = tokio::spawn(async move { running.run().await }).await.unwrap_err().into_panic();
        let said = panic.downcast_ref::<String>().unwrap();
        assert_eq!(said, "failing failed at position 1 (Test:Asked): cannot digest position 1");
        failing.mend();
        stage.pass(Duration::from_secs(5)).await;
        stage.run().await;
        assert_eq!(failing.positions(stage.store()).await, [1]);
    }
}
