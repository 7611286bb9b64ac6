//! The fan-out of channels: everybody who was subscribed at that moment gets the notification once, whatever happens,
//! and nobody waits for others for long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aggregate::{ExecuteError, Provenance, Repository};
use notification_subscribers::{
    Channel, ChannelCommand, ChannelFanOut, ChannelId, ChannelRefusal, ChannelWasNotified, InboxProjector,
    Now, UserId, UserWasNotified, UserWasSubscribedToChannel, channels,
};
use store::{DomainEvent, Event, Store, Timestamp};
use subscription_engine::{Criteria, Settings, Subscriber};
use testkit::{Random, Stage, T0, TestDatabase, both};
use tokio::task::JoinSet;

use crate::channels::subscribe;
use crate::given::{all_events, stream};

fn subscribers() -> Vec<Arc<dyn Subscriber>> {
    vec![Arc::new(ChannelFanOut), Arc::new(InboxProjector)]
}

async fn stage(database: TestDatabase) -> (Stage, Repository<Channel>) {
    let stage = Stage::new(database, subscribers()).await;
    let channels = channels(stage.store().clone());
    (stage, channels)
}

/// Does this to a channel at an instant.
async fn at(
    store: &Store,
    channels: &Repository<Channel>,
    channel: &str,
    instant: Timestamp,
    command: ChannelCommand,
) -> Result<(), ExecuteError<ChannelRefusal>> {
    let id = ChannelId::new(channel).unwrap();
    let now = Now::new(id.clone(), store.clock().clone()).at(Some(instant));
    channels.execute_with(&id.stream(), &command, &now, &Provenance::default()).await.map(|_| ())
}

/// As [`at`], at [`T0`], and it is not refused.
async fn does(stage: &Stage, channels: &Repository<Channel>, channel: &str, command: ChannelCommand) {
    at(stage.store(), channels, channel, T0, command).await.unwrap();
}

fn add() -> ChannelCommand {
    ChannelCommand::Add { label: "A channel".into() }
}

fn notify(id: &str) -> ChannelCommand {
    ChannelCommand::Notify { notification_id: id.into(), message: format!("message {id}") }
}

fn join(user: &str) -> ChannelCommand {
    ChannelCommand::Subscribe { user_id: UserId::new(user).unwrap() }
}

fn leave(user: &str) -> ChannelCommand {
    ChannelCommand::Unsubscribe { user_id: UserId::new(user).unwrap() }
}

/// Who was notified of what, in the order of the log.
fn reached(events: &[Event]) -> Vec<(String, UserWasNotified)> {
    let one = |event: &Event| {
        let notified = event.decode::<UserWasNotified>()?.unwrap();
        assert_eq!(event.stream.as_str(), format!("user-{}", notified.user_id));
        Some((notified.notification_id.clone(), notified))
    };
    events.iter().filter_map(one).collect()
}

both! {
    /// NEOS-61, NEOS-67: one event of each subscribed user, with what the channel's event says, and caused by it.
    async fn neos_61_one_event_for_each_user(database: TestDatabase) {
        let (stage, channels) = stage(database).await;
        does(&stage, &channels, "c", add()).await;
        subscribe(stage.store(), "channel-c", 1_203).await;
        does(&stage, &channels, "c", notify("n1")).await;
        stage.run().await;
        let events = all_events(stage.store()).await;
        let cause = events.iter().find(|event| event.event_type == ChannelWasNotified::TYPE).unwrap();
        let told = reached(&events);
        assert_eq!(told.len(), 1_203);
        assert_eq!(told.iter().map(|(_, told)| &told.user_id).collect::<BTreeSet<_>>().len(), 1_203);
        for (_, told) in &told {
            assert_eq!((told.notification_id.as_str(), told.message.as_str(), told.timestamp), ("n1", "message n1", T0));
        }
        let caused = events.iter().filter(|event| event.causation_id == Some(cause.id)).count();
        assert_eq!(caused, 1_203);
        // Nothing is left of the work.
        let left: Vec<(i64,)> = stage.rows("SELECT COUNT(*) FROM fan_out_pending").await;
        let timers: Vec<(i64,)> = stage.rows("SELECT COUNT(*) FROM herald_timers").await;
        assert_eq!((left[0].0, timers[0].0), (0, 0));
    }

    /// NEOS-62: an empty channel is nobody's error.
    async fn neos_62_nobody_is_subscribed(database: TestDatabase) {
        let (stage, channels) = stage(database).await;
        does(&stage, &channels, "c", add()).await;
        does(&stage, &channels, "c", notify("n1")).await;
        // Nobody can be called so; somebody appended it by hand.
        let odd = UserWasSubscribedToChannel { user_id: "$odd".into(), channel_id: "d".into() };
        does(&stage, &channels, "d", add()).await;
        stage.given("channel-d", &[odd]).await;
        does(&stage, &channels, "d", notify("n2")).await;
        // A stream that looks like a channel and never began is nothing to fold.
        let stray = ChannelWasNotified {
            channel_id: "x".into(), notification_id: "n".into(), message: "m".into(), timestamp: T0,
        };
        stage.given("elsewhere", &[stray]).await;
        stage.run().await;
        assert_eq!(reached(&all_events(stage.store()).await), []);
    }

    /// NEOS-65: who counts is who was subscribed at that event, whenever it is handled.
    async fn neos_65_as_of_the_event(database: TestDatabase) {
        let (stage, channels) = stage(database).await;
        let mut now = T0;
        let mut step = async |command| {
            now = now.plus(Duration::from_secs(10));
            at(stage.store(), &channels, "c", now, command).await.unwrap();
        };
        step(add()).await;
        step(join("early")).await;
        step(join("leaver")).await;
        step(notify("n1")).await;
        step(leave("leaver")).await;
        step(join("late")).await;
        step(notify("n2")).await;
        step(join("leaver")).await;
        step(ChannelCommand::Archive).await;
        stage.run().await;
        let who = |id: &str, events: &[Event]| {
            let told = reached(events).into_iter().filter(|(told, _)| told == id);
            told.map(|(_, told)| told.user_id).collect::<Vec<_>>()
        };
        let events = all_events(stage.store()).await;
        assert_eq!(who("n1", &events), ["early", "leaver"]);
        assert_eq!(who("n2", &events), ["early", "late"]);
    }

    /// With snapshots on the way: what they are taken of is never later than the event.
    async fn neos_65_as_of_with_snapshots(database: TestDatabase) {
        let (stage, channels) = stage(database).await;
        does(&stage, &channels, "c", add()).await;
        subscribe(stage.store(), "channel-c", 2_500).await;
        does(&stage, &channels, "c", notify("n1")).await;
        channels.close().await;
        does(&stage, &channels, "c", leave("user-0")).await;
        does(&stage, &channels, "c", join("late")).await;
        channels.close().await;
        let kept: Vec<(i64,)> = stage.rows("SELECT COUNT(*) FROM herald_snapshots").await;
        assert!(kept[0].0 > 0, "there is no snapshot");
        stage.run().await;
        let told = reached(&all_events(stage.store()).await);
        assert_eq!(told.len(), 2_500);
        assert!(told.iter().any(|(_, told)| told.user_id == "user-0"));
        assert!(told.iter().all(|(_, told)| told.user_id != "late"));
    }

    /// A small channel waits for one row of a large one, not for all of it; what was first is not put off for ever.
    async fn neos_57_channels_take_turns(database: TestDatabase) {
        let (stage, channels) = stage(database).await;
        for channel in ["large", "small", "other"] {
            does(&stage, &channels, channel, add()).await;
        }
        subscribe(stage.store(), "channel-large", 3_000).await;
        does(&stage, &channels, "small", join("somebody")).await;
        does(&stage, &channels, "other", join("somebody else")).await;
        does(&stage, &channels, "large", notify("large")).await;
        does(&stage, &channels, "small", notify("small")).await;
        // A timer fires behind everything that had happened when it was seen due.
        let one_by_one = Settings { catch_up_rounds: 1, ..Settings::default() };
        let engine = stage.engine().clone().with_settings(one_by_one);
        let fire = async || {
            engine.run(&Criteria::id("channel_fanout"), None).await.unwrap();
        };
        let count = async |id: &str| {
            reached(&all_events(stage.store()).await).iter().filter(|(told, _)| told == id).count()
        };
        fire().await;
        assert_eq!((count("large").await, count("small").await), (500, 0));
        fire().await;
        assert_eq!((count("large").await, count("small").await), (1_000, 1));
        // In the middle of it another one comes.
        does(&stage, &channels, "other", notify("other")).await;
        fire().await;
        fire().await;
        assert_eq!(count("other").await, 1);
        assert!(count("large").await < 3_000);
        stage.run().await;
        assert_eq!((count("large").await, count("small").await, count("other").await), (3_000, 1, 1));
    }

    /// NEOS-74: under any load, two notifications of a channel are ten seconds apart, by the events themselves.
    async fn neos_74_flood_under_concurrency(database: TestDatabase) {
        let seed = Random::seed();
        let store = database.store_with_manual_clock().await;
        let channels = Arc::new(channels(store.clone()));
        at(&store, &channels, "c", T0, add()).await.unwrap();
        let mut tasks = JoinSet::new();
        for task in 0..8_u64 {
            let (store, channels) = (store.clone(), Arc::clone(&channels));
            tasks.spawn(async move {
                let mut random = Random::from_seed(seed.wrapping_add(task));
                for round in 0..12_u64 {
                    let passed = Duration::from_millis(round * 4_000 + random.below(3_000));
                    let sent = at(&store, &channels, "c", T0.plus(passed), notify(&format!("{task}-{round}"))).await;
                    let is_meant = matches!(
                        &sent,
                        Ok(()) | Err(ExecuteError::Refused(ChannelRefusal::TooSoon { .. }) | ExecuteError::Contended { .. })
                    );
                    assert!(is_meant, "HERALD_TEST_SEED={seed}: {sent:?}");
                }
            });
        }
        tasks.join_all().await;
        channels.close().await;
        let notified = |event: &Event| Some(event.decode::<ChannelWasNotified>()?.unwrap().timestamp);
        let times: Vec<Timestamp> = all_events(&store).await.iter().filter_map(notified).collect();
        assert!(times.len() > 1, "HERALD_TEST_SEED={seed}");
        for pair in times.windows(2) {
            let apart = pair[1].since(pair[0]);
            assert!(apart >= Duration::from_secs(10), "HERALD_TEST_SEED={seed}: {apart:?} in {times:?}");
        }
    }

    /// Any joins, leaves, notifications and crashes: everybody is told once what was sent while they were members, and
    /// the inbox has it once.
    async fn neos_57_everybody_once_through_crashes(database: TestDatabase) {
        let seed = Random::seed();
        let mut random = Random::from_seed(seed);
        let stage = Stage::new(database, subscribers()).await;
        let small = Settings { unit_events: 3, ..Settings::default() };
        let engine = stage.engine().clone().with_settings(small);
        let channels = channels(stage.store().clone());
        let mut members: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut expected: BTreeSet<(String, String)> = BTreeSet::new();
        for channel in ["c0", "c1", "c2"] {
            does(&stage, &channels, channel, add()).await;
            members.insert(channel.to_owned(), BTreeSet::new());
        }
        // One of them takes more than one row.
        subscribe(stage.store(), "channel-c0", 1_100).await;
        members.get_mut("c0").unwrap().extend((0..1_100).map(|number| format!("user-{number}")));
        for step in 0..30_u64 {
            let channel = format!("c{}", random.below(3));
            let now = T0.plus(Duration::from_secs(20 * step));
            let of_channel = members.get_mut(&channel).unwrap();
            for _ in 0..random.below(4) {
                let user = format!("user-{}", random.below(40));
                let command = if random.below(2) == 0 {
                    of_channel.insert(user.clone());
                    join(&user)
                } else {
                    of_channel.remove(&user);
                    leave(&user)
                };
                at(stage.store(), &channels, &channel, now, command).await.unwrap();
            }
            if random.below(3) > 0 {
                let id = format!("n{step}");
                at(stage.store(), &channels, &channel, now, notify(&id)).await.unwrap();
                expected.extend(of_channel.iter().map(|user| (id.clone(), user.clone())));
            }
            match random.below(5) {
                0 => stage.run_through_crashes().await,
                1 => drop(engine.run(&Criteria::all(), None).await.unwrap()),
                2 => drop(engine.fire_timers(&Criteria::all()).await.unwrap()),
                _ => {}
            }
        }
        stage.run_through_crashes().await;
        let told = reached(&all_events(stage.store()).await);
        let pairs: BTreeSet<(String, String)> =
            told.iter().map(|(id, told)| (id.clone(), told.user_id.clone())).collect();
        assert_eq!(told.len(), pairs.len(), "HERALD_TEST_SEED={seed}: somebody was told twice");
        assert!(pairs == expected, "HERALD_TEST_SEED={seed}: {} told, {} expected", pairs.len(), expected.len());
        let inbox: Vec<(i64,)> = stage.rows("SELECT COUNT(*) FROM acme_notifications_inbox").await;
        assert_eq!(usize::try_from(inbox[0].0).unwrap(), expected.len(), "HERALD_TEST_SEED={seed}");
    }

    /// E-22: a checkpoint comes back that is older than the log, so that all is handled again: everything is there
    /// already.
    async fn e22_handled_again(database: TestDatabase) {
        let (stage, channels) = stage(database).await;
        does(&stage, &channels, "c", add()).await;
        subscribe(stage.store(), "channel-c", 600).await;
        let checkpoint = "UPDATE herald_subscriptions
                             SET position = 601, position_event_at = 601,
                                 position_event_id = (SELECT id FROM herald_events WHERE position = 601)
                           WHERE id = 'channel_fanout'";
        does(&stage, &channels, "c", notify("n1")).await;
        stage.run().await;
        let before = all_events(stage.store()).await;
        assert_eq!(reached(&before).len(), 600);
        assert_eq!(stage.store().database().execute(checkpoint, ()).await.unwrap(), 1);
        stage.run().await;
        assert_eq!(all_events(stage.store()).await, before);
        let left: Vec<(i64,)> = stage.rows("SELECT COUNT(*) FROM fan_out_pending").await;
        assert_eq!(left[0].0, 0);
    }

    /// What cannot be read holds up its own channel.
    async fn neos_62_a_broken_event_is_set_aside(database: TestDatabase) {
        let (stage, channels) = stage(database).await;
        for channel in ["broken", "fine"] {
            does(&stage, &channels, channel, add()).await;
            does(&stage, &channels, channel, join("user")).await;
        }
        let broken = store::NewEvent::new(ChannelWasNotified::TYPE, store::Json::empty_object());
        let name = stream("channel-broken");
        stage.store().append(&name, store::ExpectedVersion::Any, vec![broken]).await.unwrap();
        does(&stage, &channels, "fine", notify("n1")).await;
        for _ in 0..6 {
            stage.pass(Duration::from_secs(100)).await;
        }
        assert_eq!(reached(&all_events(stage.store()).await).len(), 1);
    }
}
