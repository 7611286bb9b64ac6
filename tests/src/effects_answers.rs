//! What receivers answer: later, never, not before then, not until somebody mends it; and no answer at all.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use store::{Json, NewEvent, StreamName, Timestamp, Tx};
use subscription_engine::{
    Answer, BoxError, Criteria, Delivery, Effect, EffectState, EffectStatus, Engine, Happened, Hold, InDoubt,
    RetryStrategy, State, Status, Terms, Wanted,
};
use testkit::{Planner, Receiver, T0, TestDatabase, both};

use crate::effects::{ask, ledger, mailer, mailing, posting, said, statuses};
use crate::engine::{engine, look, status};
use crate::given::all_events;

const PATIENCE: Duration = Duration::from_secs(30);

fn seconds(seconds: u64) -> Timestamp {
    T0.plus(Duration::from_secs(seconds))
}

fn retries(base: u64, max_attempts: u32) -> RetryStrategy {
    let base_delay = Duration::from_secs(base);
    RetryStrategy::ClockBased { base_delay, delay_factor: 2.0, max_attempts, max_delay: None }
}

fn later(_: &Effect) -> Answer {
    Answer::Retry { why: "not now".to_owned(), after: None }
}

fn done(_: &Effect) -> Answer {
    Answer::Done { detail: "taken".to_owned() }
}

/// What another process finds.
async fn another(database: &TestDatabase, receiver: &Arc<Receiver>) -> Engine {
    posting(engine(&database.store_with_manual_clock().await, vec![Planner::new(mailing())]), receiver)
}

both! {
    /// E-50: tried again by the delivery's strategy, overtaken by others; used up, it has failed, and the log says so.
    async fn e50_tried_again_and_given_up(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let terms = Terms { retry: retries(10, 2), ..Terms::default() };
        let receiver = Arc::new(Receiver::new("mail").with_terms(terms).answering(|effect| {
            if effect.body == "0" { later(effect) } else { done(effect) }
        }));
        let engine = mailer(&store, &receiver).await;
        ask(&store, 0, &["a", "a"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(statuses(&engine).await, [EffectStatus::Pending, EffectStatus::Done]);
        assert_eq!(ledger(&engine).await[0].due_at, seconds(10));
        engine.set_clock(seconds(29), PATIENCE).await.unwrap();
        assert_eq!(receiver.bodies(), ["0", "1", "0"]);
        assert_eq!(ledger(&engine).await[0].due_at, seconds(30));
        engine.set_clock(seconds(30), PATIENCE).await.unwrap();
        let failed = ledger(&engine).await.remove(0);
        assert_eq!(failed.state.status(), EffectStatus::Failed);
        assert_eq!((failed.effect.attempt, failed.failures), (3, 2));
        assert_eq!(failed.why, "gave up after 2 further tries: not now");
        assert_eq!(said(&store).await.iter().filter(|what| *what == "EffectFailed").count(), 1);
        assert_eq!(status(&engine, "mailing").await, Status::Active, "a message that fails is no failed subscription");
        engine.set_clock(seconds(10_000), PATIENCE).await.unwrap();
        assert_eq!(receiver.received().len(), 4);
    }

    /// E-50: refused for good is refused once.
    async fn e50_refused_for_good(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let never = |_: &Effect| Answer::Failed { why: "no such user".to_owned() };
        let receiver = Arc::new(Receiver::new("mail").answering(never));
        let engine = mailer(&store, &receiver).await;
        ask(&store, 0, &["a"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        engine.set_clock(seconds(10_000), PATIENCE).await.unwrap();
        assert_eq!(receiver.received().len(), 1);
        assert_eq!(ledger(&engine).await[0].why, "no such user");
    }

    /// E-51: a receiver that says when is left alone until then, also by another process; others are not.
    async fn e51_retry_after_holds_over_a_restart(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let busy = Arc::new(AtomicBool::new(true));
        let is_busy = Arc::clone(&busy);
        let receiver = Arc::new(Receiver::new("mail").answering(move |effect| {
            if effect.destination == "busy" && is_busy.load(Ordering::Relaxed) {
                Answer::Retry { why: "429".to_owned(), after: Some(Duration::from_secs(100)) }
            } else {
                done(effect)
            }
        }));
        let first = mailer(&store, &receiver).await;
        ask(&store, 0, &["busy", "busy", "free"]).await;
        first.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(receiver.received().len(), 2, "one learns it for all");
        store.close().await;

        busy.store(false, Ordering::Relaxed);
        let second = another(&database, &receiver).await;
        ask(second.store(), 3, &["busy", "free"]).await;
        second.catch_up(&Criteria::all()).await.unwrap();
        second.set_clock(seconds(99), PATIENCE).await.unwrap();
        assert_eq!(receiver.received()[2..].iter().map(|it| it.body.as_str()).collect::<Vec<_>>(), ["4"]);
        second.set_clock(seconds(100), PATIENCE).await.unwrap();
        let mut sent = receiver.bodies().split_off(3);
        sent.sort();
        assert_eq!(sent, ["0", "1", "3"]);
        assert_eq!(ledger(&second).await[0].failures, 0, "what the receiver asks for does not count");
    }

    /// E-50: blocked: nothing is burnt, the subscription stops with the reason, each retry tries one effect, later and
    /// later; mended, everything goes out.
    async fn e50_blocked_stops_the_subscription_and_heals(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let blocked = |_: &Effect| Answer::Blocked { why: "535 bad password".to_owned() };
        let receiver = Arc::new(Receiver::new("mail").answering(blocked));
        let planner = Planner::new(mailing().with_retry(retries(5, 3)));
        let engine = posting(engine(&store, vec![planner]), &receiver);
        engine.set_up(&Criteria::all(), false).await.unwrap();
        ask(&store, 0, &["a"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let State::Error { failure, next_retry, .. } = look(&engine, "mailing").await.state else {
            panic!("not in error");
        };
        assert_eq!(failure.chain, ["effects of kind mail are blocked: 535 bad password"]);
        assert_eq!(next_retry, Some(seconds(5)));
        let due = ledger(&engine).await.remove(0);
        assert_eq!((due.state, due.failures), (EffectState::Pending, 0));

        ask(&store, 1, &["b", "c", "d"]).await;
        engine.set_clock(seconds(5), PATIENCE).await.unwrap();
        assert_eq!(receiver.received().len(), 2, "one is tried, though four are due by then");
        let next_retry = |state: State| match state {
            State::Error { next_retry, .. } => next_retry,
            state => panic!("{state:?}"),
        };
        assert_eq!(next_retry(look(&engine, "mailing").await.state), Some(seconds(15)));
        engine.set_clock(seconds(100), PATIENCE).await.unwrap();
        assert_eq!(receiver.received().len(), 4);
        assert_eq!(next_retry(look(&engine, "mailing").await.state), None, "it gave up");

        // An operator who has not mended it yet: one is tried, and counted anew.
        engine.reactivate(&Criteria::id("mailing"), "perhaps").await.unwrap();
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(receiver.received().len(), 5);
        assert_eq!(next_retry(look(&engine, "mailing").await.state), Some(seconds(105)));
        receiver.answer(done);
        engine.set_clock(seconds(105), PATIENCE).await.unwrap();
        assert_eq!(status(&engine, "mailing").await, Status::Active);
        assert_eq!(statuses(&engine).await, [EffectStatus::Done; 4]);
        assert!(ledger(&engine).await.iter().all(|record| record.failures == 0));
    }

    /// E-50: no answer in time, or a delivery that panics: in doubt. It is sent again, or held, as its kind wants.
    async fn e50_in_doubt_is_resent_or_held(database: TestDatabase) {
        let store = database.store().await;
        let deadline = Duration::from_millis(20);
        let hold = Terms { deadline, in_doubt: InDoubt::Hold, ..Terms::default() };
        let silent = Arc::new(Receiver::new("mail").with_terms(hold).held());
        let engine = mailer(&store, &silent).await;
        ask(&store, 0, &["a"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let held = ledger(&engine).await.remove(0);
        assert_eq!(held.state, EffectState::Held { hold: Hold::InDoubt });
        assert_eq!(held.why, "there was no answer within 20ms");
        assert_eq!(said(&store).await, ["AttemptStarted", "EffectInDoubt"]);

        let terms = Terms { retry: retries(0, 1), ..Terms::default() };
        let panics = Arc::new(Receiver::new("mail").with_terms(terms).answering(|_| panic!("no wires")));
        let engine = posting(engine, &panics);
        ask(&store, 1, &["b"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        let held = ledger(&engine).await.remove(1);
        assert_eq!((held.state, held.failures), (EffectState::Held { hold: Hold::InDoubt }, 1));
        assert_eq!(held.why, "gave up after 1 further tries: the delivery panicked: no wires");
        assert_eq!(panics.received().len(), 2);
    }

    /// E-50: the last look fails in all ways: nothing is sent, it is tried again by the strategy, others go on.
    async fn e50_a_last_look_that_fails(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let looks = Arc::new(Looks::default());
        let engine = engine(&store, vec![Planner::new(mailing())]).with_deliveries([looks.clone() as Arc<dyn Delivery>]).unwrap();
        engine.set_up(&Criteria::all(), false).await.unwrap();
        ask(&store, 0, &["error", "panic", "swallow", "fine"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(*looks.sent.lock().unwrap(), ["fine"]);
        let effects = ledger(&engine).await;
        for (record, why) in effects.iter().zip(["cannot look", "panicked", "earlier statement"]) {
            assert_eq!((record.state, record.failures, record.effect.attempt), (EffectState::Pending, 1, 0));
            assert!(record.why.starts_with("its attempt could not begin: "), "{}", record.why);
            assert!(record.why.contains(why), "{}", record.why);
        }
        engine.set_clock(seconds(100_000), PATIENCE).await.unwrap();
        assert_eq!(statuses(&engine).await[..3], [EffectStatus::Failed; 3]);
        assert_eq!(*looks.sent.lock().unwrap(), ["fine"]);
    }

    /// E-50: a delivery's own events are appended; one that the log refuses does not make the answer forgotten.
    async fn e50_a_delivery_says_it_in_its_own_words(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let looks = Arc::new(Looks::default());
        let engine = engine(&store, vec![Planner::new(mailing())]).with_deliveries([looks.clone() as Arc<dyn Delivery>]).unwrap();
        engine.set_up(&Criteria::all(), false).await.unwrap();
        ask(&store, 0, &["own", "reserved", "silent"]).await;
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(statuses(&engine).await, [EffectStatus::Done; 3]);
        let own: Vec<_> = all_events(&store).await.into_iter().filter(|event| event.event_type == "Own:Done").collect();
        assert_eq!(own.len(), 1);
        assert_eq!(own[0].stream.as_str(), "own-1");
        let effects = ledger(&engine).await;
        assert_eq!(own[0].causation_id, Some(effects[0].effect.cause_id));
        let (_, history) = engine.effect(effects[1].effect.id).await.unwrap().unwrap();
        let unsaid = history.iter().find(|line| line.what == "unsaid").unwrap();
        assert!(unsaid.why.contains("reserved"), "{}", unsaid.why);
        assert_eq!(looks.sent.lock().unwrap().len(), 3);
    }
}

/// A delivery whose looks and events do what the destination says.
#[derive(Debug, Default)]
struct Looks {
    sent: Mutex<Vec<String>>,
}

#[async_trait]
impl Delivery for Looks {
    fn kind(&self) -> &str {
        "mail"
    }

    async fn send(&self, effect: &Effect) -> Answer {
        self.sent.lock().unwrap().push(effect.destination.clone());
        done(effect)
    }

    async fn still_wanted(&self, effect: &Effect, tx: &mut Tx) -> Result<Wanted, BoxError> {
        match effect.destination.as_str() {
            "error" => Err("cannot look".into()),
            "panic" => panic!("cannot look"),
            "swallow" => {
                let _ = tx.execute("SELECT nonsense FROM nowhere", ()).await;
                Ok(Wanted::Yes)
            }
            _ => Ok(Wanted::Yes),
        }
    }

    fn event(&self, effect: &Effect, happened: &Happened) -> Option<(StreamName, NewEvent)> {
        let stream = match (effect.destination.as_str(), happened) {
            ("own", Happened::Done { .. }) => "own-1",
            ("reserved", Happened::Done { .. }) => "$own",
            _ => return None,
        };
        Some((StreamName::new(stream).unwrap(), NewEvent::new("Own:Done", Json::empty_object())))
    }
}
