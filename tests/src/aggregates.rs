//! Functional aggregates (the rows EM-*) on a log and in a handler. What needs no log is proved beside the code and in
//! the example of the shopping cart.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aggregate::{
    Aggregate, CommandRules, ContextProvider, ExecuteError, Provenance, Repository, event_id, event_set,
    given,
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use store::{BoxError, DomainEvent, ExpectedVersion, Version};
use subscription_engine::{Definition, Subscriber};
use testkit::{Scripted, Stage, both};
use uuid::Uuid;

use crate::given::{all_events, event, stream};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct DoorWasBuilt {
    steps: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct DoorWasOpened {}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct DoorWasClosed {}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Knocked {}

impl DomainEvent for DoorWasBuilt {
    const TYPE: &'static str = "Test:DoorWasBuilt";
}

impl DomainEvent for DoorWasOpened {
    const TYPE: &'static str = "Test:DoorWasOpened";
}

impl DomainEvent for DoorWasClosed {
    const TYPE: &'static str = "Test:DoorWasClosed";
}

impl DomainEvent for Knocked {
    const TYPE: &'static str = "Test:Knocked";
}

event_set! {
    #[derive(Clone, Debug, PartialEq)]
    #[expect(clippy::enum_variant_names, reason = "each variant is called like its event")]
    enum DoorEvent { DoorWasBuilt, DoorWasOpened, DoorWasClosed }
}

#[derive(Clone, Copy, Debug)]
enum DoorCommand {
    Build,
    Open,
    /// What nobody should write: it records what its rules do not name.
    Slam,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct DoorState {
    is_open: bool,
    opened: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the door is jammed")]
struct Jammed;

#[derive(Debug)]
struct Door;

impl Aggregate for Door {
    type State = DoorState;
    type Event = DoorEvent;
    type Command = DoorCommand;
    /// How wide it is to be opened; nothing: it is jammed.
    type Context = u64;
    type Refusal = Jammed;

    const CATEGORY: Option<&'static str> = Some("door");

    fn rules(command: &DoorCommand) -> CommandRules {
        match command {
            DoorCommand::Build => CommandRules::new_stream("Build", &[DoorWasBuilt::TYPE]),
            DoorCommand::Open => CommandRules::existing("Open", &[DoorWasOpened::TYPE]),
            DoorCommand::Slam => CommandRules::existing("Slam", &[DoorWasOpened::TYPE]),
        }
    }

    fn decide(door: &DoorState, command: &DoorCommand, width: &u64) -> Result<Vec<DoorEvent>, Jammed> {
        match command {
            DoorCommand::Build => Ok(vec![DoorEvent::DoorWasBuilt(DoorWasBuilt { steps: *width })]),
            DoorCommand::Open if *width == 0 => Err(Jammed),
            DoorCommand::Open if door.is_open => Ok(vec![]),
            DoorCommand::Open => Ok(vec![DoorEvent::DoorWasOpened(DoorWasOpened {})]),
            DoorCommand::Slam => Ok(vec![
                DoorEvent::DoorWasOpened(DoorWasOpened {}),
                DoorEvent::DoorWasClosed(DoorWasClosed {}),
            ]),
        }
    }

    fn evolve(door: DoorState, event: &DoorEvent) -> DoorState {
        match event {
            DoorEvent::DoorWasBuilt(_) => door,
            DoorEvent::DoorWasOpened(_) => DoorState { is_open: true, opened: door.opened + 1 },
            DoorEvent::DoorWasClosed(_) => DoorState { is_open: false, ..door },
        }
    }
}

/// Looks something up, and has somebody else open the door meanwhile.
struct Slow {
    doors: Repository<Door>,
    asked: AtomicU64,
}

#[async_trait]
impl ContextProvider<Door> for Slow {
    async fn provide(&self, command: &DoorCommand) -> Result<u64, BoxError> {
        if matches!(command, DoorCommand::Slam) {
            return Err("nobody knows how to slam".into());
        }
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        if asked == 0 {
            self.doors.execute(&stream("door-1"), &DoorCommand::Open, &1, &Provenance::default()).await?;
        }
        Ok(asked + 1)
    }
}

fn nobody() -> Provenance {
    Provenance::default()
}

/// EM-23, EM-31: what a decision may not record is an error that names both, also where no log is.
#[test]
fn em_31_an_event_outside_the_rules_is_refused() {
    let built = DoorEvent::DoorWasBuilt(DoorWasBuilt { steps: 1 });
    let error = given::<Door>([built]).when(&DoorCommand::Slam, &1).then_refused();
    let text = "Slam records Test:DoorWasClosed, which is not among the events that it may record";
    assert_eq!(error.to_string(), text);
}

/// EM-12: the state that is handed in stays as it is.
#[test]
fn em_12_states_are_copies() {
    let door = DoorState::default();
    let open = Door::evolve(door, &DoorEvent::DoorWasOpened(DoorWasOpened {}));
    assert_eq!((door.is_open, open.is_open), (false, true));
}

/// EM-08: a test that is wrong fails.
#[test]
#[should_panic(expected = "other events follow than expected")]
fn em_08_a_wrong_expectation_is_told() {
    let built = DoorEvent::DoorWasBuilt(DoorWasBuilt { steps: 1 });
    given::<Door>([built]).when(&DoorCommand::Open, &1).then_nothing();
}

both! {
    /// EM-26, EM-27, EM-33: commands that begin a life and commands that need one.
    async fn em_26_lives_begin_once(database: TestDatabase) {
        let store = database.store().await;
        let doors = Repository::<Door>::new(store.clone());
        let name = stream("door-1");
        let error = doors.execute(&name, &DoorCommand::Open, &1, &nobody()).await.unwrap_err();
        assert_eq!(error.to_string(), "Open needs door-1, which does not exist");
        doors.execute(&name, &DoorCommand::Build, &1, &nobody()).await.unwrap();
        let error = doors.execute(&name, &DoorCommand::Build, &1, &nobody()).await.unwrap_err();
        assert_eq!(error.to_string(), "Build begins door-1, which exists already");
        doors.execute(&name, &DoorCommand::Open, &1, &nobody()).await.unwrap();
        let again = doors.execute(&name, &DoorCommand::Open, &1, &nobody()).await.unwrap();
        assert_eq!((again.events, again.appended.position), (vec![], None));
        let error = doors.execute(&stream("window-1"), &DoorCommand::Build, &1, &nobody()).await.unwrap_err();
        assert_eq!(error.to_string(), "Build is for streams of category \"door\", and window-1 is none");
        let error = doors.execute(&name, &DoorCommand::Slam, &1, &nobody()).await.unwrap_err();
        assert!(matches!(error, ExecuteError::MayNotRecord { .. }), "{error}");
        assert_eq!(all_events(&store).await.len(), 2);
    }

    /// EM-16: the context is provided before the decision, and anew when somebody was faster.
    async fn em_16_context_is_provided(database: TestDatabase) {
        let store = database.store().await;
        let doors = Repository::<Door>::new(store.clone());
        let name = stream("door-1");
        doors.execute(&name, &DoorCommand::Build, &1, &nobody()).await.unwrap();
        let slow = Slow { doors: Repository::new(store.clone()), asked: AtomicU64::new(0) };
        let opened = doors.execute_with(&name, &DoorCommand::Open, &slow, &nobody()).await.unwrap();
        // Somebody opened it while the context was looked up: decided again, there was nothing to do.
        assert_eq!((opened.events, slow.asked.load(Ordering::Relaxed)), (vec![], 2));
        let error = doors.execute_with(&name, &DoorCommand::Slam, &slow, &nobody()).await.unwrap_err();
        assert_eq!(store::messages(&error).join(": "), "could not look up what Slam needs to know: nobody knows how to slam");
    }

    /// Every event says of which aggregate it is and what brought it about; a command with an id is recorded once.
    async fn em_24_metadata_and_command_ids(database: TestDatabase) {
        let store = database.store().await;
        let doors = Repository::<Door>::new(store.clone()).with_metadata();
        let name = stream("door-a-b");
        let provenance = Provenance {
            correlation_id: Some("C".into()),
            causation_id: None,
            command_id: Some(Uuid::from_u128(7)),
        };
        for _ in 0..2 {
            let done = doors.execute(&name, &DoorCommand::Build, &1, &provenance).await;
            assert!(matches!(done, Ok(_) | Err(ExecuteError::AlreadyExists { .. })), "{done:?}");
        }
        doors.execute(&name, &DoorCommand::Open, &1, &nobody()).await.unwrap();
        let events = all_events(&store).await;
        let metadata: Vec<serde_json::Value> = events.iter().map(|event| event.metadata.to().unwrap()).collect();
        let command_id = Uuid::from_u128(7).to_string();
        assert_eq!(
            metadata,
            [
                serde_json::json!({
                    "_aggregate_type": "door", "_aggregate_id": "a-b", "_aggregate_version": 1,
                    "_causation_id": command_id, "_causation_name": "Build",
                }),
                serde_json::json!({
                    "_aggregate_type": "door", "_aggregate_id": "a-b", "_aggregate_version": 2,
                    "_causation_name": "Open",
                }),
            ]
        );
        assert_eq!(events[0].id, event_id(Uuid::from_u128(7), 0));
        assert_eq!(events[0].correlation_id.as_deref(), Some("C"));
    }

    /// In a handler: what the unit has appended already is part of the past, ids are derived, and crashes change
    /// nothing.
    async fn em_20_decided_in_a_handler(database: TestDatabase) {
        let opener: Arc<dyn Subscriber> =
            Arc::new(Scripted::new(Definition::processor("opener").on([Knocked::TYPE]), |events, context| {
                Box::pin(async move {
                    let doors = Repository::<Door>::new(context.store().clone()).with_metadata();
                    for event in events {
                        let mut cause = context.because_of(event);
                        let name = stream("door-1");
                        let build = doors.execute_in(&mut cause, &name, &DoorCommand::Build, &1).await;
                        match build {
                            Ok(_) | Err(ExecuteError::AlreadyExists { .. }) => {}
                            Err(error) => return Err(error.into()),
                        }
                        doors.execute_in(&mut cause, &name, &DoorCommand::Open, &1).await?;
                    }
                    Ok(())
                })
            }));
        let stage = Stage::new(database, vec![opener]).await;
        stage.given("street", &[Knocked {}, Knocked {}, Knocked {}]).await;
        stage.run_through_crashes().await;
        stage.given("street", &[Knocked {}]).await;
        stage.run_through_crashes().await;
        let appended = stage.appended().await;
        let types: Vec<&str> = appended.iter().map(|event| event.event_type.as_str()).collect();
        assert_eq!(types, [DoorWasBuilt::TYPE, DoorWasOpened::TYPE]);
        assert_eq!(appended[1].version, Version(1));
        let metadata: serde_json::Value = appended[1].metadata.to().unwrap();
        assert_eq!(metadata["_aggregate_version"], 2);
        assert_eq!(metadata["_causation_id"], appended[1].causation_id.unwrap().to_string());
    }

    /// What stands in the stream and is nobody's of the aggregate's events is passed over, and counts as a life.
    async fn em_34_foreign_events_are_passed_over(database: TestDatabase) {
        let store = database.store().await;
        let doors = Repository::<Door>::new(store.clone());
        let name = stream("door-1");
        doors.execute(&name, &DoorCommand::Build, &1, &nobody()).await.unwrap();
        store.append(&name, ExpectedVersion::Any, vec![event(1)]).await.unwrap();
        doors.execute(&name, &DoorCommand::Open, &1, &nobody()).await.unwrap();
        let (door, expected) = doors.load(&name).await.unwrap();
        assert_eq!((door.opened, expected), (1, ExpectedVersion::Exactly(Version(2))));
    }
}
