//! What a projector that is set back, or replayed, does because of events that come once more: nothing but its own tables.

use std::sync::Arc;

use store::{Json, Position, Store};
use subscription_engine::{
    Criteria, Definition, Delivery, Engine, LetterFilter, NewEffect, Outcome, ParkKey, Placing, Poison,
    RetryStrategy, Status,
};
use testkit::{Alarm, Receiver, Scripted, both};

use crate::engine::{append_typed, engine, look, status};
use crate::given::stream;
use crate::timers::{ask, at, pending};

/// Sets and cancels timers as events ask.
pub(crate) fn setting(definition: Definition) -> Arc<Scripted> {
    Arc::new(Scripted::new(definition, |events, context| {
        Box::pin(async move {
            for event in events {
                let alarm: Alarm = event.payload.to()?;
                let mut cause = context.because_of(event);
                match alarm.due {
                    Some(due) => cause.set_timer(&alarm.key, due, event.payload.clone())?,
                    None => cause.cancel_timer(&alarm.key)?,
                }
            }
            Ok(())
        })
    }))
}

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

/// Puts it somewhere else from where it stands.
async fn rewind(engine: &Engine, id: &str, to: i64) -> Outcome {
    let placing = Placing { seen_at: look(engine, id).await.read_from(), to: Position(to) };
    engine.rewind(id, placing, "test").await.unwrap()
}

both! {
    /// E-16: what was confirmed is done or refused, never the opposite of it.
    async fn e16_what_was_confirmed_of_another_place_is_refused(database: TestDatabase) {
        let store = database.store().await;
        let (engine, _) = live(&store).await;
        append_typed(&store, "a-1", &["Happened"; 4]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let stands = look(&engine, "telling").await.read_from();
        let placing = |seen_at, to| Placing { seen_at: Position(seen_at), to: Position(to) };
        // It was to be moved forward to 3, or from 1 to 3, or back from where it has never been.
        for placing in [placing(1, 3), placing(3, 3), placing(stands.0 + 2, stands.0 + 1)] {
            let outcome = engine.rewind("telling", placing, "test").await.unwrap();
            assert!(matches!(outcome, Outcome::Refused { .. }), "{placing:?}: {outcome:?}");
        }
        assert_eq!(look(&engine, "telling").await.read_from(), stands);
        // It has moved on by itself since: that is still back.
        let outcome = engine.rewind("telling", placing(3, 1), "test").await.unwrap();
        assert!(matches!(outcome, Outcome::Placed { to: Position(1), .. }), "{outcome:?}");
        // Somebody set it back since: what was confirmed to be passed over was less.
        let outcome = engine.rewind("telling", placing(3, 4), "test").await.unwrap();
        assert_eq!(
            outcome,
            Outcome::Refused { why: "it stood at 3 when that was decided and stands at 1 now; look again".to_owned() }
        );
    }

    /// E-16, S-60: one whose place is not in this log any more is not put elsewhere from there.
    async fn e16_one_that_strayed_is_not_put_elsewhere(database: TestDatabase) {
        let store = database.store().await;
        let (engine, _) = live(&store).await;
        append_typed(&store, "a-1", &["Happened", "Happened"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let sql = "UPDATE herald_subscriptions SET position = 1000 WHERE id = 'telling'";
        store.database().execute(sql, ()).await.unwrap();
        let outcome = rewind(&engine, "telling", 1).await;
        assert!(matches!(&outcome, Outcome::Refused { why } if why.contains("does not fit the log")), "{outcome:?}");
    }

    /// E-16, E-43: a timer that is cancelled and set again in what comes once more is still there.
    async fn e43_e16_a_projector_that_is_set_back_keeps_its_timers(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let engine = engine(&store, vec![setting(Definition::projector("alarms"))]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        ask(&store, &[at("k", 10), Alarm::cancelled("k"), at("k", 20)]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(pending(&engine).await, ["k"]);
        let before = engine.timers("alarms", None, 10).await.unwrap();

        let placed = rewind(&engine, "alarms", 0).await;
        assert!(matches!(placed, Outcome::Placed { status: Status::Active, .. }), "{placed:?}");
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(look(&engine, "alarms").await.read_from(), Position(3), "it went through all of it again");
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
        rewind(&engine, "telling", 1).await;
        rewind(&engine, "telling", 0).await;
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
        let placed = rewind(&engine, "telling", 1).await;
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
