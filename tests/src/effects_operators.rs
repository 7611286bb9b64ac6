//! What operators do with effects: hold, release, try again, discard, and remove their subscription.

use std::sync::Arc;
use std::time::Duration;

use subscription_engine::{
    Answer, Criteria, EffectFilter, EffectOutcome, EffectState, EffectStatus, Engine, FaultPoint, Hold,
    Outcome, Status,
};
use testkit::{KillSwitch, Receiver, T0, both};
use uuid::Uuid;

use crate::effects::{all_done, ask, ledger, mailer, said, statuses, until_effects};
use crate::engine::{Running, status};

/// What an effect became.
fn became(outcome: EffectOutcome) -> EffectState {
    match outcome {
        EffectOutcome::Became(record) => record.state,
        outcome => panic!("{outcome:?}"),
    }
}

fn refusal(outcome: EffectOutcome) -> String {
    match outcome {
        EffectOutcome::Refused { why } => why,
        outcome => panic!("{outcome:?}"),
    }
}

async fn ids(engine: &Engine) -> Vec<Uuid> {
    ledger(engine).await.into_iter().map(|record| record.effect.id).collect()
}

both! {
    /// E-50: held, released, tried again, discarded; each with its reason, and refused where it makes no sense.
    async fn e50_operators_and_their_reasons(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let receiver = Arc::new(Receiver::new("mail").answering(|_| Answer::Failed { why: "no".to_owned() }));
        let engine = mailer(&store, &receiver).await.on_behalf_of("ann");
        ask(&store, 0, &["a", "b", "c"]).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        let ids = ids(&engine).await;
        let held = became(engine.hold_effect(ids[0], "wait").await.unwrap());
        assert_eq!(held, EffectState::Held { hold: Hold::Operator });
        assert_eq!(became(engine.discard_effect(ids[1], "wrong").await.unwrap()), EffectState::Discarded);
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(receiver.bodies(), ["2"]);
        assert_eq!(statuses(&engine).await, [EffectStatus::Held, EffectStatus::Discarded, EffectStatus::Failed]);
        assert!(said(&store).await.contains(&"EffectDiscarded".to_owned()));

        assert_eq!(refusal(engine.retry_effect(ids[0], "x").await.unwrap()), "an effect that is held cannot be retried");
        assert_eq!(refusal(engine.release_effect(ids[2], "x").await.unwrap()), "an effect that is failed is not held");
        assert_eq!(refusal(engine.retry_effect(ids[1], "x").await.unwrap()), "an effect that is discarded cannot be retried");
        assert_eq!(engine.hold_effect(Uuid::nil(), "x").await.unwrap(), EffectOutcome::Gone);

        receiver.answer(|_| Answer::Done { detail: String::new() });
        assert_eq!(became(engine.release_effect(ids[0], "go").await.unwrap()), EffectState::Pending);
        assert_eq!(became(engine.retry_effect(ids[2], "now").await.unwrap()), EffectState::Pending);
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(statuses(&engine).await, [EffectStatus::Done, EffectStatus::Discarded, EffectStatus::Done]);
        let (_, history) = engine.effect(ids[0]).await.unwrap().unwrap();
        let lines: Vec<_> = history.iter().map(|line| (line.what.as_str(), line.why.as_str(), line.who.as_str())).collect();
        assert_eq!(lines, [("held", "wait", "ann"), ("released", "go", "ann"), ("started", "", "ann"), ("done", "", "ann")]);
    }

    /// E-50: held while it is on its way: an answer that ends it ends it; otherwise it is held then.
    async fn e50_held_while_on_its_way(database: TestDatabase) {
        let store = database.store().await;
        let answer = |effect: &subscription_engine::Effect| match effect.destination.as_str() {
            "a" => Answer::Done { detail: String::new() },
            _ => Answer::Retry { why: "later".to_owned(), after: None },
        };
        let receiver = Arc::new(Receiver::new("mail").held().answering(answer));
        let engine = mailer(&store, &receiver).await;
        ask(&store, 0, &["a", "b"]).await;
        let worker = Running::start(&engine).await;
        receiver.has_received(2).await;
        for id in ids(&engine).await {
            assert_eq!(refusal(engine.discard_effect(id, "no").await.unwrap()), "an effect that is sending cannot be discarded");
            engine.hold_effect(id, "wait").await.unwrap();
        }
        receiver.let_go(2);
        until_effects(&engine, |effects| effects.iter().all(|it| it.state.status() != EffectStatus::Sending)).await;
        worker.stop().await;
        assert_eq!(statuses(&engine).await, [EffectStatus::Done, EffectStatus::Held]);
    }

    /// E-11: removing a subscription holds what it has planned, also what is on its way; released, it is sent.
    async fn e11_remove_holds_what_is_planned(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail").held().answering(|_| {
            Answer::Retry { why: "later".to_owned(), after: None }
        }));
        let engine = mailer(&store, &receiver).await;
        ask(&store, 0, &["a", "a", "b"]).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        let sender = engine.clone();
        let sending = tokio::spawn(async move { sender.deliver(&Criteria::all()).await });
        receiver.has_received(2).await;
        let removed = engine.remove(&Criteria::id("mailing"), "test").await.unwrap();
        assert_eq!(removed, [("mailing".to_owned(), Outcome::Removed { failure: None })]);
        receiver.let_go(100);
        sending.await.unwrap().unwrap();
        assert_eq!(statuses(&engine).await, [EffectStatus::Held; 3]);
        assert!(ledger(&engine).await.iter().all(|it| it.state == EffectState::Held { hold: Hold::Removed }));
        // It comes back as a new one, and what the old one had planned stays held.
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert_eq!(status(&engine, "mailing").await, Status::Active);
        assert_eq!(statuses(&engine).await, [EffectStatus::Held; 3]);

        receiver.answer(|_| Answer::Done { detail: String::new() });
        for id in ids(&engine).await {
            assert_eq!(became(engine.release_effect(id, "send it").await.unwrap()), EffectState::Pending);
        }
        engine.catch_up(&Criteria::all()).await.unwrap();
        assert!(all_done(&ledger(&engine).await));
    }

    /// E-11: released after its subscription is gone for good: the operator has the only word.
    async fn e11_released_without_a_subscription(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail"));
        let engine = mailer(&store, &receiver).await;
        ask(&store, 0, &["a", "b"]).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        engine.remove(&Criteria::id("mailing"), "test").await.unwrap();
        let ids = ids(&engine).await;
        engine.deliver(&Criteria::all()).await.unwrap();
        assert_eq!(receiver.received().len(), 0);
        engine.release_effect(ids[1], "this one").await.unwrap();
        engine.deliver(&Criteria::all()).await.unwrap();
        assert_eq!(receiver.bodies(), ["1"]);
        assert_eq!(became(engine.discard_effect(ids[0], "not this").await.unwrap()), EffectState::Discarded);
    }

    /// E-50: an operator can hold or discard what a process that died was sending, once its claim has expired.
    async fn e50_what_a_dead_process_was_sending_can_be_discarded(database: TestDatabase) {
        let store = database.store_with_manual_clock().await;
        let receiver = Arc::new(Receiver::new("mail"));
        let engine = mailer(&store, &receiver).await;
        ask(&store, 0, &["a"]).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        let kill = KillSwitch::new("mailing", [FaultPoint::EffectSent]);
        engine.clone().with_faults(kill).deliver(&Criteria::all()).await.unwrap_err();
        let id = ids(&engine).await[0];
        assert_eq!(refusal(engine.discard_effect(id, "no").await.unwrap()), "an effect that is sending cannot be discarded");
        engine.clock().set(T0.plus(Duration::from_secs(70))).await.unwrap();
        let held = became(engine.hold_effect(id, "did it arrive?").await.unwrap());
        assert_eq!(held, EffectState::Held { hold: Hold::InDoubt });
        assert_eq!(became(engine.discard_effect(id, "it arrived").await.unwrap()), EffectState::Discarded);
        let (_, history) = engine.effect(id).await.unwrap().unwrap();
        let lines: Vec<_> = history.iter().map(|line| line.what.as_str()).collect();
        assert_eq!(lines, ["started", "in doubt", "discarded"]);
    }

    /// E-50: effects are found by state, kind, destination and subscription, page by page.
    async fn e50_effects_are_listed_in_pages(database: TestDatabase) {
        let store = database.store().await;
        let receiver = Arc::new(Receiver::new("mail"));
        let engine = mailer(&store, &receiver).await;
        let destinations: Vec<&str> = (0..250).map(|n| if n % 5 == 0 { "five" } else { "other" }).collect();
        ask(&store, 0, &destinations).await;
        engine.run(&Criteria::all(), None).await.unwrap();
        engine.hold_effect(ids(&engine).await[0], "test").await.unwrap();
        let filter = EffectFilter {
            status: Some(EffectStatus::Pending),
            kind: Some("mail".to_owned()),
            destination: Some("five".to_owned()),
            subscription: Some("mailing".to_owned()),
        };
        let (mut found, mut before) = (Vec::new(), None);
        loop {
            let page = engine.effects(&filter, before, 20).await.unwrap();
            let Some(last) = page.last() else { break };
            before = Some(last.number);
            found.extend(page.into_iter().map(|record| record.effect.body));
        }
        let expected: Vec<String> = (1..50).rev().map(|n| (n * 5).to_string()).collect();
        assert_eq!(found, expected);
        let count = |filter: EffectFilter| {
            let engine = engine.clone();
            async move { engine.effects(&filter, None, 1_000).await.unwrap().len() }
        };
        let all = EffectFilter::default;
        assert_eq!(count(EffectFilter { status: Some(EffectStatus::Held), ..all() }).await, 1);
        assert_eq!(count(EffectFilter { destination: Some("other".to_owned()), ..all() }).await, 200);
        assert_eq!(count(EffectFilter { kind: Some("fax".to_owned()), ..all() }).await, 0);
        assert_eq!(count(EffectFilter { subscription: Some("mailing".to_owned()), ..all() }).await, 250);
    }
}
