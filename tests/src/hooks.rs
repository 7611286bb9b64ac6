//! Hooks (S-17, PROOPH-13): a program is asked before, and told after, its appends and reads.

use std::sync::{Arc, Mutex};

use store::{
    Append, AppendError, Appended, BoxError, Draft, Event, ExpectedVersion, Filter, Hook, Hooks,
    InvalidEvent, Json, MAX_METADATA_BYTES, MetadataEnricher, NewEvent, Position, ReadError, Reading, Store,
    Version, messages,
};
use subscription_engine::{Criteria, Definition, Status};
use testkit::{Scripted, both};

use crate::engine::{engine, look, status};
use crate::engine_failure::failure_of;
use crate::given::{all_events, event, stream};

/// What hooks noted, in the order in which they were called.
#[derive(Clone, Debug, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

impl Notes {
    fn add(&self, note: String) {
        self.0.lock().unwrap().push(note);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// Notes everything that it is asked and told.
struct Listener {
    name: &'static str,
    notes: Notes,
}

impl Listener {
    fn new(name: &'static str, notes: &Notes) -> Self {
        Self { name, notes: notes.clone() }
    }
}

impl Hook for Listener {
    fn name(&self) -> &str {
        self.name
    }

    fn before_append(&self, draft: &mut Draft<'_>) -> Result<(), BoxError> {
        self.notes.add(format!("{} before {} to {}", self.name, draft.events().len(), draft.stream()));
        Ok(())
    }

    fn after_append(&self, append: &Append, appended: &Appended) {
        let (version, replayed) = (appended.version.unwrap(), if appended.replayed { " again" } else { "" });
        self.notes.add(format!("{} after {} at {version}{replayed}", self.name, append.stream));
    }

    fn before_read(&self, reading: &Reading<'_>) -> Result<(), BoxError> {
        let what = match reading {
            Reading::Log { direction, limit, .. } => format!("log {direction:?} {limit}"),
            Reading::Stream { stream, direction, limit } => format!("{stream} {direction:?} {limit}"),
        };
        self.notes.add(format!("{} reads {what}", self.name));
        Ok(())
    }

    fn after_read(&self, _: &Reading<'_>, events: &[Event]) {
        self.notes.add(format!("{} got {}", self.name, events.len()));
    }
}

/// Refuses appends to, and reads of, streams of a category.
struct Closed(&'static str);

/// A handle of a log that refuses what goes to streams of a category.
pub(crate) fn refusing(store: &Store, category: &'static str) -> Store {
    store.clone().with_hooks(Hooks::new().with(0, Closed(category)))
}

impl Hook for Closed {
    fn name(&self) -> &str {
        "opening hours"
    }

    fn before_append(&self, draft: &mut Draft<'_>) -> Result<(), BoxError> {
        if draft.stream().category() == self.0 { Err("we are closed".into()) } else { Ok(()) }
    }

    fn before_read(&self, reading: &Reading<'_>) -> Result<(), BoxError> {
        match reading {
            Reading::Stream { stream, .. } if stream.category() == self.0 => Err("we are closed".into()),
            _ => Ok(()),
        }
    }
}

/// Panics whenever it can.
struct Broken {
    before: bool,
}

impl Hook for Broken {
    fn name(&self) -> &str {
        "broken"
    }

    fn before_append(&self, _: &mut Draft<'_>) -> Result<(), BoxError> {
        assert!(!self.before, "before");
        Ok(())
    }

    fn after_append(&self, _: &Append, _: &Appended) {
        panic!("after");
    }

    fn after_read(&self, _: &Reading<'_>, _: &[Event]) {
        panic!("after");
    }
}

fn json(value: &str) -> Json {
    Json::parse(value).unwrap()
}

async fn metadata_of(store: &Store) -> Vec<String> {
    all_events(store).await.into_iter().map(|event| event.metadata.to_string()).collect()
}

fn to(name: &str, events: Vec<NewEvent>) -> Append {
    Append { stream: stream(name), expected: ExpectedVersion::Any, events }
}

/// Prints what was recorded, as the listener of the slides does.
struct Recorder(Notes);

impl Hook for Recorder {
    fn name(&self) -> &str {
        "recorder"
    }

    fn after_append(&self, append: &Append, _: &Appended) {
        for event in &append.events {
            self.0.add(format!("Event with name {} was recorded. ///", event.event_type));
        }
    }
}

both! {
    /// PROOPH-13: listeners by priority; one of −1000 comes after all others, when the events are in the stream.
    async fn prooph13_a_listener_of_low_priority_runs_after_all_others(database: TestDatabase) {
        let notes = Notes::default();
        let hooks = Hooks::new()
            .with(-1000, Recorder(notes.clone()))
            .with(0, Listener::new("second", &notes))
            .with(100, Listener::new("first", &notes))
            .with(0, Listener::new("third", &notes));
        let store = database.store().await.with_hooks(hooks);

        store.append(&stream("user-1"), ExpectedVersion::NoStream, vec![event(1), event(2)]).await.unwrap();

        assert_eq!(
            notes.take(),
            [
                "first before 2 to user-1",
                "second before 2 to user-1",
                "third before 2 to user-1",
                "first after user-1 at 1",
                "second after user-1 at 1",
                "third after user-1 at 1",
                "Event with name Acme.Test:Happened was recorded. ///",
                "Event with name Acme.Test:Happened was recorded. ///",
            ]
        );
    }

    /// S-17: what a hook refuses is not written, with a typed error, and its ids are as good as new.
    async fn s17_a_refused_append_leaves_nothing_behind(database: TestDatabase) {
        let notes = Notes::default();
        let open = database.store().await;
        let hooks = Hooks::new().with(0, Closed("shop")).with(-1, Listener::new("later", &notes));
        let store = open.clone().with_hooks(hooks);
        let events = vec![event(1), event(2)];

        let refused = store.append(&stream("shop-1"), ExpectedVersion::Any, events.clone()).await.unwrap_err();

        assert_eq!(
            messages(&refused).join(": "),
            "hook \"opening hours\" refuses the append to shop-1: we are closed"
        );
        let AppendError::RefusedByHook { stream: refused, hook, .. } = refused else { panic!("{refused}") };
        assert_eq!((refused, hook.as_str()), (stream("shop-1"), "opening hours"));
        assert_eq!((notes.take(), all_events(&open).await.len()), (Vec::<String>::new(), 0));
        store.append(&stream("user-1"), ExpectedVersion::Any, vec![event(3)]).await.unwrap();
        let appended = open.append(&stream("shop-1"), ExpectedVersion::NoStream, events).await.unwrap();
        assert_eq!((appended.version, appended.replayed), (Some(Version(1)), false));
    }

    /// S-17: the enricher fills in what is missing and never changes what the caller said.
    async fn s17_metadata_are_filled_in(database: TestDatabase) {
        let enricher = MetadataEnricher::new("deployment")
            .field("environment", json("\"test\""))
            .field_from("length", |stream, _| Some(json(&stream.as_str().len().to_string())))
            .field_from("never", |_, _| None);
        let store = database.store().await.with_hooks(Hooks::new().with(0, enricher));
        let said = NewEvent { metadata: json("{\"environment\": 1.0}"), ..event(2) };
        let plain = event(1);

        store.append(&stream("user-1"), ExpectedVersion::Any, vec![plain.clone(), said]).await.unwrap();

        assert_eq!(
            metadata_of(&store).await,
            ["{\"environment\":\"test\",\"length\":6}", "{\"environment\":1.0,\"length\":6}"]
        );
        // Metadata do not tell events apart, so a repetition is one whatever is filled in by now.
        let other = MetadataEnricher::new("deployment").field("environment", json("\"other\""));
        let (notes, hooks) = (Notes::default(), Hooks::new().with(0, other));
        let later = store.clone().with_hooks(hooks.with(0, Listener::new("listener", &notes)));
        store.append(&stream("user-2"), ExpectedVersion::Any, vec![event(7)]).await.unwrap();
        let again = vec![event(8)];
        store.append(&stream("user-3"), ExpectedVersion::Any, again.clone()).await.unwrap();
        let appended = later.append(&stream("user-3"), ExpectedVersion::Any, again).await.unwrap();
        assert!(appended.replayed);
        assert_eq!(notes.take().last().unwrap(), "listener after user-3 at 0 again");
        assert_eq!(metadata_of(&store).await.last().unwrap(), "{\"environment\":\"test\",\"length\":6}");
    }

    /// S-17: limits hold for what hooks made of the events.
    async fn s17_limits_are_checked_after_the_hooks(database: TestDatabase) {
        let long = Json::of(&"x".repeat(MAX_METADATA_BYTES)).unwrap();
        let enricher = MetadataEnricher::new("chatty").field("long", long);
        let store = database.store().await.with_hooks(Hooks::new().with(0, enricher));
        let refused = store.append(&stream("user-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap_err();
        let AppendError::Invalid { source: InvalidEvent::MetadataTooLarge(bytes), .. } = refused else {
            panic!("{refused}")
        };
        assert!(bytes > MAX_METADATA_BYTES);
        // What was wrong before is said as always, and no hook sees it.
        let no_object = NewEvent { metadata: json("[]"), ..event(1) };
        let refused = store.append(&stream("user-1"), ExpectedVersion::Any, vec![no_object]).await.unwrap_err();
        assert!(matches!(refused, AppendError::Invalid { source: InvalidEvent::Metadata(_), .. }), "{refused}");
        assert_eq!(all_events(&store).await.len(), 0);
    }

    /// S-17: of a transaction hooks are told when it is committed, and of what is not committed never.
    async fn s17_a_transaction_is_told_when_it_is_committed(database: TestDatabase) {
        let notes = Notes::default();
        let hooks = Hooks::new().with(0, Listener::new("listener", &notes)).with(0, Closed("shop"));
        let store = database.store().await.with_hooks(hooks);
        let befores = ["listener before 1 to b-1", "listener before 2 to a-1"];

        let mut tx = store.begin().await.unwrap();
        let appends = vec![to("b-1", vec![event(1)]), to("a-1", vec![event(2), event(3)]), to("c-1", vec![])];
        store.append_all(&mut tx, appends.clone()).await.unwrap();
        assert_eq!(notes.take(), befores);
        tx.rollback().await;
        assert_eq!(notes.take(), Vec::<String>::new());

        let mut tx = store.begin().await.unwrap();
        let savepoint = tx.savepoint().await.unwrap();
        store.append_all(&mut tx, appends.clone()).await.unwrap();
        tx.roll_back_to(savepoint).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(notes.take(), befores);

        let mut tx = store.begin().await.unwrap();
        store.append_all(&mut tx, appends.clone()).await.unwrap();
        notes.take();
        tx.commit().await.unwrap();
        assert_eq!(notes.take(), ["listener after b-1 at 0", "listener after a-1 at 1"]);

        let mut tx = store.begin().await.unwrap();
        let both = vec![to("d-1", vec![event(4)]), to("shop-1", vec![event(5)])];
        let refused = store.append_all(&mut tx, both).await.unwrap_err();
        assert!(matches!(refused, AppendError::RefusedByHook { .. }), "{refused}");
        tx.rollback().await;
        assert_eq!(all_events(&store).await.len(), 3);
    }

    /// S-17: appends that share a commit are asked and told each for itself.
    async fn s17_appends_that_share_a_commit_share_no_hook(database: TestDatabase) {
        let notes = Notes::default();
        let hooks = Hooks::new().with(0, Closed("shop")).with(0, Listener::new("listener", &notes));
        let store = database.store().await.with_hooks(hooks);
        let mut appending = tokio::task::JoinSet::new();
        for number in 0..20 {
            let store = store.clone();
            appending.spawn(async move {
                let name = format!("{}-{number}", if number % 4 == 0 { "shop" } else { "user" });
                let result = store.append(&stream(&name), ExpectedVersion::NoStream, vec![event(number)]).await;
                assert_eq!(result.is_ok(), number % 4 != 0, "{result:?}");
            });
        }
        while let Some(done) = appending.join_next().await {
            done.unwrap();
        }
        let after = notes.take().into_iter().filter(|note| note.contains(" after user-")).count();
        assert_eq!(after, 15);
        let streams = all_events(&store).await;
        assert!(streams.len() == 15 && streams.iter().all(|event| event.stream.category() == "user"));
    }

    /// S-17: a hook that panics before has refused; after, it has only itself to blame.
    async fn s17_a_panic_of_a_hook_stays_its_own(database: TestDatabase) {
        let notes = Notes::default();
        let plain = database.store().await;
        let with = |before| {
            let hooks = Hooks::new().with(1, Broken { before }).with(0, Listener::new("listener", &notes));
            plain.clone().with_hooks(hooks)
        };
        let refused = with(true).append(&stream("a-1"), ExpectedVersion::Any, vec![event(1)]).await.unwrap_err();
        assert_eq!(messages(&refused).join(": "), "hook \"broken\" refuses the append to a-1: it panicked: before");
        with(false).append(&stream("a-1"), ExpectedVersion::NoStream, vec![event(1)]).await.unwrap();
        let page = with(false).read(&Filter::all(), Position::START, 10).await.unwrap();
        assert_eq!(page.events.len(), 1);
        let told = notes.take();
        assert!(told.contains(&"listener after a-1 at 0".to_owned()) && told.contains(&"listener got 1".to_owned()));
    }

    /// S-17: every page that is read is asked for and told; a refused one is an error.
    async fn s17_reads_are_asked_and_told(database: TestDatabase) {
        let notes = Notes::default();
        let hooks = Hooks::new().with(0, Listener::new("x", &notes)).with(-1, Closed("shop"));
        let store = database.store().await.with_hooks(hooks);
        store.append(&stream("user-1"), ExpectedVersion::Any, vec![event(1), event(2)]).await.unwrap();
        notes.take();

        store.read(&Filter::all().types(["Acme.Test:Happened"]), Position(1), 5).await.unwrap();
        store.read_backwards(&Filter::all(), None, 7).await.unwrap();
        store.read_stream(&stream("user-1"), 0, 1).await.unwrap();
        store.read_stream_backwards(&stream("user-1"), None, 3).await.unwrap();
        let mut tx = store.begin().await.unwrap();
        store.read_stream_in(&mut tx, &stream("user-1"), 0, 4).await.unwrap();
        let refused = store.read_stream_in(&mut tx, &stream("shop-1"), 0, 4).await.unwrap_err();
        tx.rollback().await;

        assert_eq!(
            notes.take(),
            [
                "x reads log Forwards 5", "x got 1",
                "x reads log Backwards 7", "x got 2",
                "x reads user-1 Forwards 1", "x got 1",
                "x reads user-1 Backwards 3", "x got 2",
                "x reads user-1 Forwards 4", "x got 2",
                "x reads shop-1 Forwards 4",
            ]
        );
        assert!(matches!(&refused, ReadError::RefusedByHook { hook, .. } if hook == "opening hours"), "{refused}");
    }

    /// S-17: what a subscriber appends is asked and told as well; a refusal is a failure at the event that caused it.
    async fn s17_a_refusal_inside_a_unit_is_a_failure_at_its_event(database: TestDatabase) {
        let notes = Notes::default();
        let hooks = Hooks::new().with(0, Closed("shop")).with(0, Listener::new("listener", &notes));
        let store = database.store().await.with_hooks(hooks);
        let wishes = vec![event(1), NewEvent { event_type: "Wish".to_owned(), ..event(2) }];
        store.append(&stream("user-1"), ExpectedVersion::Any, wishes).await.unwrap();
        notes.take();
        let echo = Scripted::new(Definition::projector("echo"), |events, context| {
            Box::pin(async move {
                for event in events.iter().filter(|event| event.stream.category() == "user") {
                    let name = if event.event_type == "Wish" { "shop-1" } else { "echo-1" };
                    let mut cause = context.because_of(event);
                    cause.append(&stream(name), ExpectedVersion::Any, "Echo", Json::empty_object())?;
                }
                Ok(())
            })
        });
        let engine = engine(&store, vec![Arc::new(echo)]);

        engine.catch_up(&Criteria::all()).await.unwrap();

        assert_eq!(status(&engine, "echo").await, Status::Error);
        assert_eq!(look(&engine, "echo").await.position, Some(Position(1)));
        let failure = failure_of(&engine, "echo").await;
        assert_eq!(failure.event.as_ref().unwrap().position, Position(2));
        assert_eq!(failure.chain.join(": "), "hook \"opening hours\" refuses the append to shop-1: we are closed");
        let after: Vec<_> = notes.take().into_iter().filter(|note| note.contains(" after ")).collect();
        assert_eq!(after, ["listener after echo-1 at 0"]);
    }
}
