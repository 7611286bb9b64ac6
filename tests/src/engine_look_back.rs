//! Looking back from the event that is handled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use store::{Event, ExpectedVersion, Filter, Json, Matcher, NewEvent, Operator, Store};
use subscription_engine::{BoxError, Context, Criteria, Definition, Engine, Settings, Subscriber};
use testkit::{Random, Scripted, both};

use crate::engine::{append_typed, engine};
use crate::engine_failure::failure_of;
use crate::given::{all_events, stream};

/// What was found: by the position from which was looked, and by the way in which was looked.
type Found = Arc<Mutex<BTreeMap<(i64, usize), Seen>>>;

/// All positions, the first and the last.
type Seen = (Vec<i64>, Option<i64>, Option<i64>);

/// Ways to look that the database answers in different ways.
fn filters() -> Vec<Filter> {
    vec![
        Filter::all(),
        Filter::all().types(["A"]),
        Filter::all().types(["A", "B"]),
        Filter::all().types(["Never"]),
        Filter::all().types(Vec::<String>::new()),
        Filter::all().stream(stream("s-1")),
        Filter::all().category("s"),
        Filter::all().category("s").types(["B"]),
        Filter::all().correlation_id("order"),
        Filter::all().matching(Matcher::new().metadata("number", Operator::GreaterThan, 20_i64).unwrap()),
    ]
}

fn positions(events: &[Event]) -> Vec<i64> {
    events.iter().map(|event| event.position.0).collect()
}

/// Looks back from each event in every way, and in the last way into its own stream.
async fn look_back(events: &[Event], context: &mut Context<'_>, found: &Found) -> Result<(), BoxError> {
    let at = |event: &Option<Event>| event.as_ref().map(|event| event.position.0);
    for event in events {
        let mut cause = context.because_of(event);
        for (way, filter) in filters().into_iter().enumerate() {
            let all = positions(&cause.look_back(filter.clone()).all(1_000).await?);
            let first = at(&cause.look_back(filter.clone()).first().await?);
            let last = at(&cause.look_back(filter).last().await?);
            found.lock().unwrap().insert((event.position.0, way), (all, first, last));
        }
        let own = cause.look_back(Filter::all().types(["A"])).in_its_stream();
        let own = positions(&own.all(1_000).await?);
        found.lock().unwrap().insert((event.position.0, filters().len()), (own, None, None));
    }
    Ok(())
}

/// The same, worked out from the whole log.
fn expected(log: &[Event]) -> BTreeMap<(i64, usize), Seen> {
    let mut expected = BTreeMap::new();
    for event in log {
        let before: Vec<Event> =
            log.iter().filter(|other| other.position < event.position).cloned().collect();
        for (way, filter) in filters().into_iter().enumerate() {
            let all: Vec<i64> =
                before.iter().filter(|other| filter.matches(other)).map(|other| other.position.0).collect();
            let (first, last) = (all.first().copied(), all.last().copied());
            expected.insert((event.position.0, way), (all, first, last));
        }
        let own = before.iter().filter(|other| other.stream == event.stream && other.event_type == "A");
        let own = own.map(|other| other.position.0).collect();
        expected.insert((event.position.0, filters().len()), (own, None, None));
    }
    expected
}

async fn append_mixed(store: &Store, count: u64) {
    let mut random = Random::new();
    for number in 0..count {
        let event_type = ["A", "B", "C"][usize::try_from(random.below(3)).unwrap()];
        let name = ["s-1", "s-2", "t-1"][usize::try_from(random.below(3)).unwrap()];
        let mut event = NewEvent::new(event_type, Json::empty_object());
        event.metadata = Json::of(&serde_json::json!({ "number": number })).unwrap();
        event.correlation_id = (random.below(2) == 0).then(|| "order".to_owned());
        store.append(&stream(name), ExpectedVersion::Any, vec![event]).await.unwrap();
    }
}

fn looking(id: &str, with_open_transaction: bool, found: &Found) -> Arc<dyn Subscriber> {
    let found = Arc::clone(found);
    Arc::new(Scripted::new(Definition::projector(id), move |events, context| {
        let found = Arc::clone(&found);
        Box::pin(async move {
            if with_open_transaction {
                context.tx().await?;
            }
            look_back(events, context, &found).await
        })
    }))
}

fn in_units_of(unit_events: usize, store: &Store, subscriber: Arc<dyn Subscriber>) -> Engine {
    engine(store, vec![subscriber]).with_settings(Settings { unit_events, ..Settings::default() })
}

both! {
    /// E-28, PL-143: from each event exactly what stands before it, however it is asked for, in the transaction or
    /// before it is open; and the same once more in a replay, when the log has grown.
    async fn e28_pl_143_exactly_what_stands_before(database: TestDatabase) {
        let store = database.store().await;
        append_mixed(&store, 40).await;
        for (id, with_open_transaction) in [("before_it", false), ("inside_it", true)] {
            let found = Found::default();
            let engine = in_units_of(7, &store, looking(id, with_open_transaction, &found));
            engine.catch_up(&Criteria::all()).await.unwrap();
            let log = all_events(&store).await;
            assert_eq!(*found.lock().unwrap(), expected(&log));
            append_mixed(&store, 5).await;
            found.lock().unwrap().clear();
            engine.replay(id, "once more", |_, _| {}).await.unwrap();
            let log = all_events(&store).await;
            assert_eq!(*found.lock().unwrap(), expected(&log));
        }
    }

    /// E-28: what the unit itself appends does not stand before the event.
    async fn e28_a_unit_does_not_see_its_own_appends(database: TestDatabase) {
        let store = database.store().await;
        append_typed(&store, "s-1", &["A", "A", "A"]).await;
        let counted = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&counted);
        let noting = Scripted::new(Definition::projector("noting").on(["A"]), move |events, context| {
            let kept = Arc::clone(&kept);
            Box::pin(async move {
                for event in events {
                    let mut cause = context.because_of(event);
                    cause.append(&stream("s-1"), ExpectedVersion::Any, "B", Json::empty_object())?;
                    let before = cause.look_back(Filter::all()).in_its_stream().all(10).await?;
                    kept.lock().unwrap().push(before.len());
                }
                Ok(())
            })
        });
        engine(&store, vec![Arc::new(noting)]).catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(*counted.lock().unwrap(), [0, 1, 2]);
    }

    /// E-28: a past that is longer than the handler is ready for is a failure, never a part of it.
    async fn e28_a_longer_past_than_allowed_is_a_failure(database: TestDatabase) {
        let store = database.store().await;
        append_typed(&store, "s-1", &["A", "A", "A", "A"]).await;
        let short = Scripted::new(Definition::projector("short"), |events, context| {
            Box::pin(async move {
                for event in events {
                    context.because_of(event).look_back(Filter::all()).all(2).await?;
                }
                Ok(())
            })
        });
        let engine = engine(&store, vec![Arc::new(short)]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        let failure = failure_of(&engine, "short").await;
        assert_eq!(failure.event.as_ref().unwrap().position.0, 4);
        assert_eq!(failure.message(), "more than 2 events stand before position 4; look for fewer, or allow more");
    }
}
