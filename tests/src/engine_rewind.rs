//! What a projector that is set back, or replayed, does because of events that come once more: nothing but its own tables.

use std::sync::Arc;

use store::{Json, Position, Store};
use subscription_engine::{
    Criteria, Definition, Delivery, Engine, LetterFilter, NewEffect, Outcome, ParkKey, Poison, RetryStrategy,
    Status,
};
use testkit::{Alarm, Alarms, Receiver, Scripted, both};

use crate::engine::{append_typed, engine, look, status};
use crate::given::stream;
use crate::timers::{ask, at, pending};

/// Plans a mail for each event, and emits one.
fn telling(definition: Definition) -> Arc<Scripted> {
    Arc::new(Scripted::new(definition.on(["Happened", "Bad"]), |events, context| {
        Box::pin(async move {
            for event in events {
                let mail = NewEffect::new("mail", "a", event.position.to_string());
                context.because_of(event).plan_effect(mail)?;
                context.because_of(event).emit("Told", Json::empty_object())?;
            }
            Ok(())
        })
    }))
}

/// An engine with one that tells, at the end of an empty log, and a receiver of its mails.
async fn live(store: &Store) -> (Engine, Arc<Receiver>) {
    let receiver = Arc::new(Receiver::new("mail"));
    let engine = engine(store, vec![telling(Definition::projector("telling"))])
        .with_deliveries([receiver.clone() as Arc<dyn Delivery>])
        .unwrap();
    engine.catch_up(&Criteria::all()).await.unwrap();
    (engine, receiver)
}

/// How many events it has emitted.
async fn emitted(store: &Store) -> usize {
    store.read_stream(&stream("subscription_telling"), 0, 100).await.map_or(0, |page| page.events.len())
}

both! {
    /// E-16, E-43: a timer that is cancelled and set again in what comes once more is still there.
    async fn e43_e16_a_projector_that_is_set_back_keeps_its_timers(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let engine = engine(&store, vec![Alarms::new(Definition::projector("alarms"))]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        ask(&store, &[at("k", 10), Alarm::cancelled("k"), at("k", 20)]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(pending(&engine).await, ["k"]);
        let before = engine.timers("alarms", None, 10).await.unwrap();

        let placed = engine.rewind("alarms", Position(0), "test").await.unwrap();
        assert!(matches!(placed, Outcome::Placed { status: Status::Active, .. }), "{placed:?}");
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(engine.timers("alarms", None, 10).await.unwrap(), before);
        ask(&store, &[Alarm::cancelled("k")]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(pending(&engine).await, [""; 0], "what is new counts again");
    }

    /// E-16, E-29, E-50: what was never handled is no history, however often a projector is set back.
    async fn e16_e50_what_comes_for_the_first_time_after_a_rewind_is_planned(database: TestDatabase) {
        let store = database.store().await;
        let (engine, receiver) = live(&store).await;
        append_typed(&store, "a-1", &["Happened", "Happened"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let head = store.head().await.unwrap().position;
        append_typed(&store, "a-1", &["Happened"]).await;
        engine.rewind("telling", Position(1), "test").await.unwrap();
        engine.rewind("telling", Position(0), "further back").await.unwrap();
        assert_eq!(look(&engine, "telling").await.history_to, Some(head));
        engine.catch_up(&Criteria::all()).await.unwrap();
        let third = (head.0 + 1).to_string();
        assert_eq!(receiver.bodies(), ["1", "2", third.as_str()]);
        assert_eq!(emitted(&store).await, 3);
    }

    /// E-14, E-50: nor is what a projector had not come to when it was replayed.
    async fn e14_e50_what_comes_for_the_first_time_after_a_replay_is_planned(database: TestDatabase) {
        let store = database.store().await;
        let (engine, receiver) = live(&store).await;
        append_typed(&store, "a-1", &["Happened", "Happened"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let third = (store.head().await.unwrap().position.0 + 1).to_string();
        append_typed(&store, "a-1", &["Happened"]).await;
        let replayed = engine.replay("telling", "test", |_, _| {}).await.unwrap();
        assert_eq!(replayed, Outcome::CaughtUp { events: 3 });
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(receiver.bodies(), ["1", "2", third.as_str()]);
        assert_eq!(emitted(&store).await, 3);
    }

    /// E-16, E-50: setting it back while it boots for the first time makes nothing of its history news.
    async fn e16_e50_a_rewind_within_the_first_boot_plans_nothing(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail"));
        append_typed(&store, "a-1", &["Happened", "Happened", "Happened"]).await;
        let engine = engine(&store, vec![telling(Definition::projector("telling"))])
            .with_deliveries([receiver.clone() as Arc<dyn Delivery>])
            .unwrap();
        engine.set_up(&Criteria::all(), false).await.unwrap();
        engine.boot(&Criteria::all(), Some(2)).await.unwrap();
        let placed = engine.rewind("telling", Position(1), "test").await.unwrap();
        assert!(matches!(placed, Outcome::Placed { status: Status::Booting, .. }), "{placed:?}");
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!((receiver.bodies().len(), emitted(&store).await), (0, 0));
    }

    /// E-33, E-50: a dead letter that is tried while its projector stopped half-way through history plans nothing.
    async fn e33_e50_a_letter_of_history_plans_nothing(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail"));
        // One letter is allowed; the second bad event stops it.
        let poison = Poison::Park { key: ParkKey::Stream, cap_count: 1, cap_share: 1.0 };
        let definition = Definition::projector("telling").with_retry(RetryStrategy::None).with_poison(poison);
        let bad = Scripted::new(definition.clone().on(["Happened", "Bad"]), |events, _| {
            let is_bad = events.iter().any(|event| event.event_type == "Bad");
            Box::pin(async move { if is_bad { Err("no".into()) } else { Ok(()) } })
        });
        append_typed(&store, "a-1", &["Bad"]).await;
        append_typed(&store, "b-1", &["Bad"]).await;
        engine(&store, vec![Arc::new(bad)]).catch_up(&Criteria::all()).await.unwrap();

        let mended = engine(&store, vec![telling(definition)])
            .with_deliveries([receiver.clone() as Arc<dyn Delivery>])
            .unwrap();
        assert_eq!(status(&mended, "telling").await, Status::Error);
        let report = mended.retry_dead_letters("telling", &LetterFilter::default(), "mended").await.unwrap();
        assert_eq!(report.done, 1);
        mended.reactivate(&Criteria::all(), "mended").await.unwrap();
        mended.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!((receiver.bodies().len(), emitted(&store).await), (0, 0));
    }
}
