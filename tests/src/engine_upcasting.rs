//! Upcasting and subscriptions (S-16): the parts of a split event are handled together or not at all, and what is
//! not shown any more is passed over.

use std::sync::{Arc, Mutex};

use store::{Event, ExpectedVersion, Filter, Json, Part, Position, Upcaster, Upcasters};
use subscription_engine::{BoxError, Criteria, Definition, Outcome, Settings, Status};
use testkit::{Scripted, both, position};

use crate::engine::{append_typed, engine, look, status};
use crate::engine_failure::failure_of;
use crate::given::stream;
use crate::upcasting::{PriceWasSet, currency, shop};

/// Positions and types of the events of each call.
type Calls = Arc<Mutex<Vec<Vec<(i64, String)>>>>;

fn seen(events: &[Event]) -> Vec<(i64, String)> {
    events.iter().map(|event| (event.position.0, event.event_type.clone())).collect()
}

/// Notes each call, and fails if an event of this type is in it.
fn failing_at(definition: Definition, failing: &Arc<Mutex<&'static str>>, calls: &Calls) -> Arc<Scripted> {
    let (failing, calls) = (Arc::clone(failing), Arc::clone(calls));
    Arc::new(Scripted::new(definition, move |events, context| {
        let (failing, calls) = (Arc::clone(&failing), Arc::clone(&calls));
        Box::pin(async move {
            let failing = *failing.lock().unwrap();
            context.tx().await?;
            calls.lock().unwrap().push(seen(events));
            match events.iter().find(|event| event.event_type == failing) {
                Some(event) => Err(BoxError::from(format!("no {}", event.event_type))),
                None => Ok(()),
            }
        })
    }))
}

/// One event into so many, of types that end in their number.
fn into_parts(event_type: &'static str, count: usize) -> Upcaster {
    let name = move |index: usize| format!("{event_type}{index}");
    let work = move |event: &Event| {
        Ok((0..count).map(|index| Part::new(name(index), 1, event.payload.clone())).collect())
    };
    let upcaster = Upcaster::new("into parts", work).takes(event_type, 1);
    (0..count).fold(upcaster, |upcaster, index| upcaster.gives(name(index), 1))
}

both! {
    /// S-16: wherever a handler fails and however large a unit is, parts are never separated, and what stands before
    /// the failing event is kept.
    async fn s16_parts_are_handled_in_one_unit(database: TestDatabase) {
        let upcasters = Upcasters::new([into_parts("Split", 5), into_parts("Two", 2)]).unwrap();
        let store = database.store().await.with_upcasters(upcasters);
        append_typed(&store, "thing-1", &["Plain", "Two", "Split", "Two", "Plain"]).await;
        for unit_events in [1, 2, 3, 4, 6, 9, 20] {
            let (failing, calls) = (Arc::new(Mutex::new("Split4")), Calls::default());
            let id = format!("units_of_{unit_events}");
            let scripted = failing_at(Definition::projector(&id), &failing, &calls);
            let engine = engine(&store, vec![scripted])
                .with_settings(Settings { unit_events, ..Settings::default() });

            engine.catch_up(&Criteria::id(&id)).await.unwrap();

            assert_eq!(position(&look(&engine, &id).await), 2, "{unit_events}");
            assert_eq!(failure_of(&engine, &id).await.event.unwrap().position, Position(3));
            *failing.lock().unwrap() = "";
            engine.reactivate(&Criteria::id(&id), "mended").await.unwrap();
            engine.catch_up(&Criteria::id(&id)).await.unwrap();
            assert_eq!((status(&engine, &id).await, position(&look(&engine, &id).await)), (Status::Active, 5));
            for call in calls.lock().unwrap().iter() {
                for (at, parts) in [(2, 2), (3, 5), (4, 2)] {
                    let count = call.iter().filter(|(position, _)| *position == at).count();
                    assert!(count == 0 || count == parts, "{unit_events}: {call:?}");
                }
            }
        }
    }

    /// S-16: what is not shown any more moves the position and is handled by nobody.
    async fn s16_events_that_became_nothing_are_passed_over(database: TestDatabase) {
        let store = database.store().await.with_upcasters(shop());
        append_typed(&store, "thing-1", &["Noise", "Kept", "Noise", "Moved", "Noise", "Noise"]).await;
        let definitions = [
            (Definition::projector("all"), vec![(2, "Kept"), (4, "Left"), (4, "Arrived")]),
            (Definition::projector("arrivals").on(["Arrived"]), vec![(4, "Arrived")]),
            (Definition::projector("noise").on(["Noise"]), vec![]),
        ];
        for (definition, wanted) in definitions {
            let (id, calls) = (definition.id().to_owned(), Calls::default());
            let scripted = failing_at(definition, &Arc::new(Mutex::new("")), &calls);
            let engine = engine(&store, vec![scripted]);
            engine.catch_up(&Criteria::id(&id)).await.unwrap();
            assert_eq!((status(&engine, &id).await, position(&look(&engine, &id).await)), (Status::Active, 6));
            let handled = calls.lock().unwrap().concat();
            let handled: Vec<_> = handled.iter().map(|(position, name)| (*position, name.as_str())).collect();
            assert_eq!(handled, wanted, "{id}");
        }
    }

    /// S-16: who wants an event that cannot be upcast waits before it and is told why; nobody else does.
    async fn s16_a_failing_upcaster_stops_only_who_wants_the_event(database: TestDatabase) {
        let work = |_: &Event| -> Result<Vec<Part>, BoxError> { Err("no such bottle".into()) };
        let poison = Upcaster::new("antidote", work).takes("Poison", 1).gives("Cured", 1);
        let store = database.store().await.with_upcasters(Upcasters::new([poison]).unwrap());
        append_typed(&store, "thing-1", &["Kept", "Poison", "Kept"]).await;
        let kept = Arc::new(Scripted::idle(Definition::projector("kept").on(["Kept"])));
        let cured = Arc::new(Scripted::idle(Definition::projector("cured").on(["Kept", "Cured"])));
        let engine = engine(&store, vec![kept, cured]);
        engine.set_up(&Criteria::all(), false).await.unwrap();

        let report = engine.boot(&Criteria::all(), None).await.unwrap();

        assert_eq!(position(&look(&engine, "cured").await), 1);
        assert_eq!(position(&look(&engine, "kept").await), 3);
        let (_, outcome) = report.iter().find(|(id, _)| id == "cured").unwrap();
        let Outcome::Failed { failure } = outcome else { panic!("{outcome:?}") };
        let why = failure.chain.join(": ");
        assert!(why.contains("position 2") && why.contains("Poison") && why.contains("no such bottle"), "{why}");
    }

    /// S-16: a handler looks back through upcasters, appends under the version that is stored, and what it appends
    /// because of a part names the event that the log has.
    async fn s16_a_handler_looks_back_and_appends_because_of_parts(database: TestDatabase) {
        let store = database.store().await.with_upcasters(shop());
        append_typed(&store, "shop-1", &["Moved", "Noise"]).await;
        let looked = Arc::new(Mutex::new(Vec::new()));
        let found = Arc::clone(&looked);
        let definition = Definition::projector("greeter").on(["Left", "Arrived"]);
        let greeter = Scripted::new(definition, move |events, context| {
            let found = Arc::clone(&found);
            Box::pin(async move {
                for event in events {
                    let mut cause = context.because_of(event);
                    let past = cause.load(&stream("shop-1")).await?;
                    found.lock().unwrap().push(past.events.len());
                    cause.append(&stream("shop-1"), past.expected, "Greeted", Json::empty_object())?;
                }
                Ok(())
            })
        });
        let engine = engine(&store, vec![Arc::new(greeter)]);

        engine.catch_up(&Criteria::all()).await.unwrap();

        // Two parts, and then the first greeting as well.
        assert_eq!(*looked.lock().unwrap(), [2, 3]);
        let stored = store.without_upcasters().read(&Filter::all(), Position::START, 10).await.unwrap().events;
        let types: Vec<_> = stored.iter().map(|event| (event.version.0, event.event_type.as_str())).collect();
        assert_eq!(types, [(0, "Moved"), (1, "Noise"), (2, "Greeted"), (3, "Greeted")]);
        assert!(stored[2..].iter().all(|event| event.causation_id == Some(stored[0].id)));
        assert_ne!(stored[2].id, stored[3].id);
        let refused = store.append(&stream("shop-1"), ExpectedVersion::NoStream, vec![crate::given::event(1)]).await;
        assert!(refused.is_err());
    }

    /// S-16: a handler writes events in the form of today, so that nobody takes them for old ones.
    async fn s16_a_handler_appends_with_the_schema_version(database: TestDatabase) {
        let store = database.store().await.with_upcasters(currency());
        append_typed(&store, "order-1", &["Ordered"]).await;
        let price = PriceWasSet { cents: 5, currency: "CHF".to_owned() };
        let written = price.clone();
        let pricing = Scripted::new(Definition::projector("pricing").on(["Ordered"]), move |events, context| {
            let price = written.clone();
            Box::pin(async move {
                let mut cause = context.because_of(&events[0]);
                cause.append_event(&stream("shop-1"), ExpectedVersion::NoStream, &price)?;
                Ok(())
            })
        });
        let engine = engine(&store, vec![Arc::new(pricing)]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        let events = store.read_stream(&stream("shop-1"), 0, 10).await.unwrap();
        assert_eq!(events[0].decode::<PriceWasSet>().unwrap().unwrap(), price);
        assert_eq!(events[0].schema_version(), Ok(2));
    }
}
