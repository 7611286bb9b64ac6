//! Emitting to a subscription's own stream, and links to other streams.

use std::sync::Arc;

use store::{CLOSED, Event, ExpectedVersion, Json, NewEvent, ReadError, Store};
use subscription_engine::{
    Criteria, Definition, Emission, Engine, FaultPoint, Linked, Outcome, RetryStrategy, Status, Subscriber,
};
use testkit::{Collector, KillSwitch, Scripted, both};

use crate::engine::{append_typed, engine, status};
use crate::engine_failure::failure_of;
use crate::given::{all_events, stream};

/// Emits "Noted" for each event.
fn emitter(definition: Definition) -> Arc<dyn Subscriber> {
    Arc::new(Scripted::new(definition, |events, context| {
        Box::pin(async move {
            for event in events {
                context.because_of(event).emit("Noted", Json::empty_object())?;
            }
            Ok(())
        })
    }))
}

/// Links each event to the stream of all orders.
fn linker(definition: Definition) -> Arc<dyn Subscriber> {
    Arc::new(Scripted::new(definition, |events, context| {
        Box::pin(async move {
            for event in events {
                context.because_of(event).link_to(&stream("orders"))?;
            }
            Ok(())
        })
    }))
}

async fn of_stream(store: &Store, name: &str) -> Vec<Event> {
    store.read_stream(&stream(name), 0, 100).await.unwrap().events
}

/// Sets up and boots at the events that there are.
async fn booted(engine: &Engine) {
    engine.set_up(&Criteria::all(), false).await.unwrap();
    engine.boot(&Criteria::all(), None).await.unwrap();
}

both! {
    /// E-29, PL-139, PL-140: history is not emitted; what comes then is, once, in the subscription's own stream, and
    /// others see it.
    async fn e29_pl_139_pl_140_emitted_once_and_not_while_booting(database: TestDatabase) {
        let store = database.store().await;
        append_typed(&store, "order-1", &["Placed", "Placed"]).await;
        let emitting = || emitter(Definition::projector("a").on(["Placed"]));
        let others = Collector::new(Definition::projector("others").on(["Noted"]));
        let engine_of = |subscribers: Vec<Arc<dyn Subscriber>>| engine(&store, subscribers);
        let unlucky = engine_of(vec![emitting(), others.clone()]);
        booted(&unlucky).await;
        assert!(of_stream(&store, "subscription_a").await.is_empty());

        append_typed(&store, "order-1", &["Placed"]).await;
        for point in [FaultPoint::BeforeCommit, FaultPoint::InsideCommit, FaultPoint::AfterCommit] {
            let kill = KillSwitch::new("a", [point]);
            let unlucky = engine_of(vec![emitting(), others.clone()]).with_faults(kill);
            // Once the commit went through after all, nothing is left to strike at.
            let _ = unlucky.run(&Criteria::id("a"), None).await;
        }
        engine_of(vec![emitting(), others.clone()]).catch_up(&Criteria::all()).await.unwrap();
        let emitted = of_stream(&store, "subscription_a").await;
        let cause = of_stream(&store, "order-1").await[2].id;
        assert_eq!(emitted.iter().map(|event| event.causation_id).collect::<Vec<_>>(), [Some(cause)]);
        assert_eq!(others.positions(&store).await, [emitted[0].position.0]);
    }

    /// PL-141: history is emitted where that is asked for, and is not emitted again by a replay; and nothing where it
    /// is switched off.
    async fn pl_141_emission_can_be_asked_for_and_switched_off(database: TestDatabase) {
        let store = database.store().await;
        append_typed(&store, "order-1", &["Placed", "Placed"]).await;
        let wanting = |id| Definition::projector(id).on(["Placed"]);
        let always = emitter(wanting("always").with_emission(Emission::Always));
        let never = emitter(wanting("never").with_emission(Emission::Never));
        let engine = engine(&store, vec![always, never]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        append_typed(&store, "order-1", &["Placed"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(of_stream(&store, "subscription_always").await.len(), 3);
        assert!(of_stream(&store, "subscription_never").await.is_empty());
        engine.replay("always", "once more", |_, _| {}).await.unwrap();
        assert_eq!(of_stream(&store, "subscription_always").await.len(), 3);
    }

    /// E-29: a link is an event of its own that says what it stands for.
    async fn e29_a_link_says_what_it_stands_for(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![linker(Definition::processor("linker").on(["Placed"]))]);
        booted(&engine).await;
        append_typed(&store, "order-1", &["Opened"]).await;
        let mut placed = NewEvent::new("Placed", Json::parse(r#"{ "cents": 1 }"#).unwrap());
        placed.metadata = Json::parse(r#"{"by":"me"}"#).unwrap();
        placed.correlation_id = Some("the order".to_owned());
        let placed = placed.with_schema_version(3).unwrap();
        store.append(&stream("order-1"), ExpectedVersion::Any, vec![placed]).await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();

        let original = of_stream(&store, "order-1").await.remove(1);
        let links = of_stream(&store, "orders").await;
        let [link] = &links[..] else { panic!("{links:?}") };
        assert_ne!(link.id, original.id);
        assert_eq!((&link.event_type, &link.payload), (&original.event_type, &original.payload));
        assert_eq!(link.schema_version(), Ok(3));
        assert_eq!(link.correlation_id.as_deref(), Some("the order"));
        assert_eq!(link.causation_id, Some(original.id));
        let stands_for =
            Linked { stream: stream("order-1"), version: original.version, position: original.position };
        assert_eq!(Linked::of(link), Some(stands_for));
        assert_eq!(link.metadata.field("by").unwrap().as_str(), r#""me""#);
        assert_eq!(Linked::of(&original), None);
    }

    /// E-26, E-29: who wants everything comes to an end all the same.
    async fn e26_e29_nobody_emits_or_links_for_ever(database: TestDatabase) {
        let store = database.store().await;
        append_typed(&store, "order-1", &["Placed", "Placed"]).await;
        for subscriber in [
            emitter(Definition::projector("emitting").with_emission(Emission::Always)),
            linker(Definition::projector("linking").with_emission(Emission::Always)),
        ] {
            let report = engine(&store, vec![subscriber]).catch_up(&Criteria::all()).await.unwrap();
            // The other one's subscriber is not in this program any more.
            let is_fine = |outcome: &Outcome| {
                matches!(outcome, Outcome::CaughtUp { .. } | Outcome::Became { to: Status::Detached, .. })
            };
            assert!(report.iter().all(|(_, outcome)| is_fine(outcome)), "{report:?}");
        }
        assert_eq!(of_stream(&store, "subscription_emitting").await.len(), 2);
        assert_eq!(of_stream(&store, "orders").await.len(), 4);
        assert_eq!(all_events(&store).await.len(), 8);
    }

    /// PL-142, E-29: removal can close the stream to which it has emitted, and the log keeps that.
    async fn e29_pl_142_removal_can_close_the_emitted_stream(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![emitter(Definition::processor("a").on(["Placed"]))]);
        booted(&engine).await;
        append_typed(&store, "order-1", &["Placed", "Placed"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(all_events(&store).await.len(), 4);

        let report = engine.remove_and_close(&Criteria::id("a"), "b has taken over").await.unwrap();

        assert_eq!(report, [("a".to_owned(), Outcome::Removed { failure: None })]);
        let read = store.read_stream(&stream("subscription_a"), 0, 10).await;
        assert!(matches!(read, Err(ReadError::StreamClosed(_))), "{read:?}");
        assert_eq!(all_events(&store).await.len(), 2, "what others have appended");
        let kept = all_events(&store.clone().with_closed_streams()).await;
        let types: Vec<&str> = kept[2..].iter().map(|event| event.event_type.as_str()).collect();
        assert_eq!(types, ["Noted", "Noted", CLOSED]);
        assert_eq!(kept[4].payload.as_str(), r#"{"reason":"a was removed: b has taken over"}"#);
        // One that has emitted nothing has no stream to close, and is removed all the same.
        engine.set_up(&Criteria::all(), true).await.unwrap();
        let report = engine.remove_and_close(&Criteria::id("a"), "twice").await.unwrap();
        assert_eq!(report, [("a".to_owned(), Outcome::Removed { failure: None })]);
    }

    /// E-29: under the same id nothing is emitted once more, and what is new fails with the reason; another id has a
    /// stream of its own.
    async fn e29_what_comes_back_under_the_same_id_cannot_emit(database: TestDatabase) {
        let store = database.store().await;
        append_typed(&store, "order-1", &["Placed"]).await;
        let always = |id: &str| {
            let definition = Definition::projector(id).on(["Placed"]).with_emission(Emission::Always);
            emitter(definition.with_retry(RetryStrategy::None))
        };
        let engine = engine(&store, vec![always("a")]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        engine.remove_and_close(&Criteria::all(), "test").await.unwrap();

        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(status(&engine, "a").await, Status::Active, "what it has emitted is in the log already");
        append_typed(&store, "order-1", &["Placed"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let failure = failure_of(&engine, "a").await;
        assert_eq!(
            failure.message(),
            "stream subscription_a is closed, and nothing can be appended to it any more; use another stream"
        );
        let next = crate::engine::engine(&store, vec![always("b")]);
        next.catch_up(&Criteria::id("b")).await.unwrap();
        assert_eq!(of_stream(&store, "subscription_b").await.len(), 2);
    }

    /// E-29, E-20: the row and the stream go together, or not at all.
    async fn e29_the_row_and_the_stream_go_together(database: TestDatabase) {
        let store = database.store().await;
        let engine = engine(&store, vec![emitter(Definition::processor("a").on(["Placed"]))]);
        booted(&engine).await;
        append_typed(&store, "order-1", &["Placed"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let guard = crate::hooks::refusing(&store, "subscription_a");
        let guarded = crate::engine::engine(&guard, vec![]);
        guarded.remove_and_close(&Criteria::id("a"), "test").await.unwrap_err();
        assert_eq!(status(&engine, "a").await, Status::Active);
        assert_eq!(of_stream(&store, "subscription_a").await.len(), 1);
    }
}
