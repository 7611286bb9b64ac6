//! What a handler may do: append through its context, look at streams, and nothing behind the engine's back.

use std::sync::{Arc, Mutex};

use store::{Append, AppendError, ExpectedVersion, Json, Store, Version};
use subscription_engine::{
    BoxError, Context, ContextError, Criteria, Definition, Engine, EngineError, Outcome, Settings,
    Subscriber, Worker,
};
use testkit::{Collector, KillSwitch, Scripted, both, position};
use uuid::Uuid;

use crate::engine::{append, append_typed, engine, look, only};
use crate::given::{all_events, event, stream};

/// Keeps what a handler found out, for the test to look at.
type Found = Arc<Mutex<Vec<String>>>;

/// Allows two bookings on each account, and books no third.
async fn book(events: &[store::Event], context: &mut Context<'_>) -> Result<(), BoxError> {
    let account = stream("account-1");
    for event in events {
        let mut cause = context.because_of(event);
        let loaded = cause.load(&account).await?;
        let decision = if loaded.events.len() < 2 { "Booked" } else { "Declined" };
        cause.append(&account, loaded.expected, decision, Json::empty_object())?;
    }
    Ok(())
}

fn booking() -> Arc<dyn Subscriber> {
    let definition = Definition::projector("booking").on(["Wish"]);
    Arc::new(Scripted::new(definition, |events, context| Box::pin(book(events, context))))
}

async fn types_of(store: &Store, name: &str) -> Vec<String> {
    let events = store.read_stream(&stream(name), 0, 100).await.unwrap();
    events.into_iter().map(|event| event.event_type).collect()
}

both! {
    /// E-22, PL-132: events of one aggregate in one page decide on each other; what is appended names its cause.
    async fn e22_pl_132_events_of_one_page_decide_on_each_other(database: TestDatabase) {
        let store = database.store().await;
        let mut wish = event(1);
        wish.event_type = "Wish".to_owned();
        wish.correlation_id = Some("the order".to_owned());
        store.append(&stream("wishes-1"), ExpectedVersion::Any, vec![wish]).await.unwrap();
        append_typed(&store, "wishes-1", &["Wish", "Wish"]).await;
        let collector = Collector::new(Definition::projector("collector"));
        let engine = engine(&store, vec![booking(), collector.clone()]);
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(types_of(&store, "account-1").await, ["Booked", "Booked", "Declined"]);

        let events = all_events(&store).await;
        for (cause, effect) in events[..3].iter().zip(&events[3..]) {
            assert_eq!(effect.causation_id, Some(cause.id));
            assert_eq!(effect.correlation_id, cause.correlation_id);
        }
        assert_eq!(events[3].correlation_id.as_deref(), Some("the order"));
        assert_eq!(collector.positions(&store).await.len(), 6, "later units see what was appended");
    }

    /// E-22: the same unit again gives the same ids, whatever became of it the first time.
    async fn e22_the_same_unit_gives_the_same_ids(database: TestDatabase) {
        let store = database.store().await;
        append_typed(&store, "wishes-1", &["Wish", "Wish"]).await;
        let ids = Arc::new(Mutex::new(Vec::<Vec<Uuid>>::new()));
        let kept = Arc::clone(&ids);
        let noting = Scripted::new(Definition::projector("noting").on(["Wish"]), move |events, context| {
            let kept = Arc::clone(&kept);
            Box::pin(async move {
                let mut ids = Vec::new();
                for event in events {
                    for name in ["a-1", "a-1", "b-1"] {
                        let mut cause = context.because_of(event);
                        ids.push(cause.append(&stream(name), ExpectedVersion::Any, "Noted", Json::empty_object())?);
                    }
                }
                kept.lock().unwrap().push(ids);
                Ok(())
            })
        });
        let kill = KillSwitch::new("noting", [subscription_engine::FaultPoint::BeforeCommit]);
        let noting: Arc<dyn Subscriber> = Arc::new(noting);
        let unlucky = engine(&store, vec![noting.clone()]).with_faults(kill);
        unlucky.catch_up(&Criteria::all()).await.unwrap_err();
        engine(&database.store().await, vec![noting]).catch_up(&Criteria::all()).await.unwrap();
        let runs = ids.lock().unwrap().clone();
        assert_eq!(runs.len(), 2);
        assert_eq!(runs[0], runs[1]);
        let mut distinct = runs[0].clone();
        distinct.sort();
        distinct.dedup();
        assert_eq!(distinct.len(), 6, "one for each stream, type and number");
        let mut stored: Vec<Uuid> = all_events(&store).await[2..].iter().map(|event| event.id).collect();
        stored.sort();
        assert_eq!(stored, distinct);
    }

    /// E-34: an append that meets another one is nobody's failure: the unit waits, unchanged, and is repeated.
    async fn e34_a_version_conflict_waits(database: TestDatabase) {
        let store = database.store().await;
        let outsider = store.clone();
        let interfere = Arc::new(Mutex::new(true));
        let racing = Scripted::new(Definition::projector("racing").on(["Wish"]), move |events, context| {
            let (outsider, interfere) = (outsider.clone(), Arc::clone(&interfere));
            Box::pin(async move {
                book(events, context).await?;
                let first = std::mem::replace(&mut *interfere.lock().unwrap(), false);
                if first {
                    // Another process: a task of its own is out of the engine's sight.
                    tokio::spawn(async move { append_typed(&outsider, "account-1", &["Booked"]).await }).await?;
                }
                Ok(())
            })
        });
        let engine = engine(&store, vec![Arc::new(racing)]);
        append_typed(&store, "wishes-1", &["Wish", "Wish"]).await;
        engine.set_up(&Criteria::all(), false).await.unwrap();
        let outcome = only(engine.boot(&Criteria::all(), None).await.unwrap());
        let Outcome::Waiting { why } = outcome else { panic!("{outcome:?}") };
        assert!(why.contains("account-1"), "{why}");
        let now = look(&engine, "racing").await;
        assert_eq!((now.state.status().word(), now.attempt, now.position), ("booting", 0, None));
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(types_of(&store, "account-1").await, ["Booked", "Booked", "Declined"]);
    }

    /// E-22: an append that cannot be as the unit itself expects is refused at once.
    async fn e22_a_unit_that_contradicts_itself_is_refused(database: TestDatabase) {
        let store = database.store().await;
        let confused = Scripted::new(Definition::projector("confused"), |events, context| {
            Box::pin(async move {
                let mut cause = context.because_of(&events[0]);
                let expected = ExpectedVersion::Exactly(Version(4));
                cause.append(&stream("a-1"), expected, "Noted", Json::empty_object())?;
                cause.append(&stream("a-1"), expected, "Noted", Json::empty_object())?;
                Ok(())
            })
        });
        let engine = engine(&store, vec![Arc::new(confused)]);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let failure = crate::engine_failure::failure_of(&engine, "confused").await;
        assert!(failure.message().contains("this unit has appended to it before"), "{failure:?}");
    }

    /// E-21, PL-030, PL-126: past its context a handler appends nothing and runs nothing, and is told so at once.
    async fn e21_pl_030_pl_126_what_is_refused_inside_a_unit(database: TestDatabase) {
        let store = database.store().await;
        let engine_inside: Arc<Mutex<Option<Engine>>> = Arc::default();
        let found = Found::default();
        let (kept, inner) = (Arc::clone(&found), Arc::clone(&engine_inside));
        let reaching = Scripted::new(Definition::projector("reaching"), move |_, context| {
            let (kept, engine) = (Arc::clone(&kept), inner.lock().unwrap().clone().unwrap());
            Box::pin(async move {
                let store = engine.store();
                let append = || Append { stream: stream("a-1"), expected: ExpectedVersion::Any, events: vec![event(1)] };
                let mut said = Vec::new();
                let refused = store.append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap_err();
                said.push(matches!(refused, AppendError::RefusedHere(_)));
                let refused = store.append_all(context.tx().await?, vec![append()]).await.unwrap_err();
                said.push(matches!(refused, AppendError::RefusedHere(_)));
                let all = Criteria::all();
                said.push(matches!(engine.boot(&all, None).await, Err(EngineError::InsideUnit)));
                said.push(matches!(engine.catch_up(&all).await, Err(EngineError::InsideUnit)));
                said.push(matches!(engine.pause(&all, "inside").await, Err(EngineError::InsideUnit)));
                said.push(matches!(engine.replay("reaching", "inside", |_, _| {}).await, Err(EngineError::InsideUnit)));
                let worker = Worker::new(engine.clone(), all, "inside");
                said.push(matches!(worker.run(async {}, || {}).await, Err(EngineError::InsideUnit)));
                kept.lock().unwrap().push(format!("{said:?}"));
                Ok(())
            })
        });
        let outside = engine(&store, vec![Arc::new(reaching)]);
        *engine_inside.lock().unwrap() = Some(outside.clone());
        append(&store, 1).await;
        outside.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(*found.lock().unwrap(), [format!("{:?}", vec![true; 7])]);
        assert_eq!(all_events(&store).await.len(), 1);
        // PL-031: outside it is allowed again.
        engine_inside.lock().unwrap().take();
        append(&store, 1).await;
        let panicked = outside.run(&Criteria::all(), None).await.unwrap();
        assert!(matches!(only(panicked), Outcome::Failed { .. }));
        append(&store, 1).await;
        outside.run(&Criteria::all(), None).await.unwrap();
    }

    /// PL-107: a rule of the database that is broken at the end is the handler's failure.
    async fn pl_107_an_append_that_breaks_a_limit_fails(database: TestDatabase) {
        let store = database.store().await;
        let wordy = Scripted::new(Definition::projector("wordy"), |events, context| {
            Box::pin(async move {
                let payload = Json::of(&"x".repeat(store::MAX_PAYLOAD_BYTES + 1))?;
                context.because_of(&events[0]).append(&stream("a-1"), ExpectedVersion::Any, "Noted", payload)?;
                Ok(())
            })
        });
        let engine = engine(&store, vec![Arc::new(wordy)]);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let failure = crate::engine_failure::failure_of(&engine, "wordy").await;
        assert_eq!(failure.event.unwrap().position.0, 1);
        assert_eq!(look(&engine, "wordy").await.position, None);
    }

    /// A table that the definition does not name is not to be had.
    async fn a_table_that_is_not_defined_is_refused(database: TestDatabase) {
        let store = database.store().await;
        let found = Found::default();
        let kept = Arc::clone(&found);
        let asking = Scripted::new(Definition::projector("asking"), move |_, context| {
            let refused = matches!(context.table("herald_events"), Err(ContextError::UnknownTable { .. }));
            kept.lock().unwrap().push(refused.to_string());
            Box::pin(async { Ok(()) })
        });
        let engine = engine(&store, vec![Arc::new(asking)]);
        append(&store, 1).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(*found.lock().unwrap(), ["true"]);
    }

    /// E-26, PL-122, PL-123: catching up goes on while something moves, but not for ever.
    async fn e26_pl_122_pl_123_catching_up_is_bounded(database: TestDatabase) {
        let store = database.store().await;
        let endless = Scripted::new(Definition::projector("endless"), |events, context| {
            Box::pin(async move {
                context.because_of(&events[0]).append(&stream("a-1"), ExpectedVersion::Any, "More", Json::empty_object())?;
                Ok(())
            })
        });
        let settings = Settings { catch_up_rounds: 3, ..Settings::default() };
        let engine = engine(&store, vec![Arc::new(endless)]).with_settings(settings);
        append(&store, 1).await;
        let outcome = only(engine.catch_up(&Criteria::all()).await.unwrap());
        assert!(matches!(&outcome, Outcome::Waiting { why } if why.starts_with("still moving after 3 rounds")), "{outcome:?}");
        let lag = engine.status(&Criteria::all()).await.unwrap().remove(0).lag;
        assert_eq!(lag, 1);
        assert_eq!(position(&look(&engine, "endless").await) + 1, store.head().await.unwrap().position.0);
    }
}
