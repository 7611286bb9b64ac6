//! Deliveries for tests: an in-process receiver that notes everything it gets, and a subscriber that plans.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use store::{Event, Tx};
use subscription_engine::{
    Answer, BoxError, Context, Definition, Delivery, Effect, NewEffect, Subscriber, Terms, Wanted,
};
use tokio::sync::{Semaphore, watch};
use uuid::Uuid;

/// A receiver of effects that lives in the test: it notes what arrives, and answers as it is told.
pub struct Receiver {
    kind: String,
    terms: Terms,
    answer: Mutex<Box<Answering>>,
    received: watch::Sender<Vec<Effect>>,
    /// What is being received, and for whom.
    under_way: Mutex<Vec<(Uuid, String)>>,
    /// What met something that must not be received at the same time.
    clashes: Mutex<Vec<String>>,
    unwanted: Mutex<BTreeSet<String>>,
    let_go: Option<Semaphore>,
}

type Answering = dyn FnMut(&Effect) -> Answer + Send;

impl Receiver {
    /// Takes everything of this kind.
    pub fn new(kind: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            terms: Terms::default(),
            answer: Mutex::new(Box::new(|_| Answer::Done { detail: "taken".to_owned() })),
            received: watch::Sender::new(Vec::new()),
            under_way: Mutex::default(),
            clashes: Mutex::default(),
            unwanted: Mutex::default(),
            let_go: None,
        }
    }

    /// With other numbers.
    #[must_use]
    pub fn with_terms(self, terms: Terms) -> Self {
        Self { terms, ..self }
    }

    /// Answers like this.
    #[must_use]
    pub fn answering(self, answer: impl FnMut(&Effect) -> Answer + Send + 'static) -> Self {
        Self { answer: Mutex::new(Box::new(answer)), ..self }
    }

    /// Takes its time: each answer waits until the test lets it go.
    #[must_use]
    pub fn held(self) -> Self {
        Self { let_go: Some(Semaphore::new(0)), ..self }
    }

    /// Lets so many answers go.
    pub fn let_go(&self, answers: usize) {
        self.let_go.as_ref().expect("only a held one lets go").add_permits(answers);
    }

    /// Answers like this from now on.
    pub fn answer(&self, answer: impl FnMut(&Effect) -> Answer + Send + 'static) {
        *locked(&self.answer) = Box::new(answer);
    }

    /// Nobody wants what has this body any more.
    pub fn forget(&self, body: &str) {
        locked(&self.unwanted).insert(body.to_owned());
    }

    /// What has arrived, in order.
    pub fn received(&self) -> Vec<Effect> {
        self.received.borrow().clone()
    }

    /// The bodies of what has arrived, in order.
    pub fn bodies(&self) -> Vec<String> {
        self.received.borrow().iter().map(|effect| effect.body.clone()).collect()
    }

    /// Waits until so many have arrived.
    pub async fn has_received(&self, count: usize) {
        let mut received = self.received.subscribe();
        received.wait_for(|received| received.len() >= count).await.expect("the sender is ours");
    }

    /// What was sent while the same thing, or something else for the same destination, was on its way.
    pub fn clashes(&self) -> Vec<String> {
        locked(&self.clashes).clone()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // An answer that panics is one of those that are tested.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says that something is being received, until it is done or cut off.
struct UnderWay<'a>(&'a Receiver, Uuid);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut under_way = locked(&self.0.under_way);
        if let Some(index) = under_way.iter().position(|one| one.0 == self.1) {
            under_way.swap_remove(index);
        }
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[async_trait]
impl Delivery for Receiver {
    fn kind(&self) -> &str {
        &self.kind
    }

    async fn send(&self, effect: &Effect) -> Answer {
        let under_way = {
            let mut under_way = locked(&self.under_way);
            let clashes = under_way.iter().filter(|one| one.0 == effect.id || one.1 == effect.destination);
            locked(&self.clashes).extend(clashes.map(|one| format!("{} while {} was", effect.id, one.0)));
            under_way.push((effect.id, effect.destination.clone()));
            UnderWay(self, effect.id)
        };
        self.received.send_modify(|received| received.push(effect.clone()));
        if let Some(let_go) = &self.let_go {
            let_go.acquire().await.expect("never closed").forget();
        }
        let answer = locked(&self.answer)(effect);
        drop(under_way);
        answer
    }

    async fn still_wanted(&self, effect: &Effect, _: &mut Tx) -> Result<Wanted, BoxError> {
        Ok(if locked(&self.unwanted).contains(&effect.body) {
            Wanted::No { why: "nobody waits for it".to_owned() }
        } else {
            Wanted::Yes
        })
    }

    fn terms(&self) -> Terms {
        self.terms.clone()
    }
}

/// Plans an effect for each event: its kind, its destination and its body are the payload's `kind`, `to` and
/// `number`.
#[derive(Debug)]
pub struct Planner(Definition);

impl Planner {
    /// A planner with this definition.
    pub fn new(definition: Definition) -> Arc<Self> {
        Arc::new(Self(definition))
    }
}

#[async_trait]
impl Subscriber for Planner {
    fn definition(&self) -> Definition {
        self.0.clone()
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        for event in events {
            let payload: serde_json::Value = event.payload.to()?;
            let text = |field: &str, default: &str| payload[field].as_str().unwrap_or(default).to_owned();
            let new = NewEffect::new(text("kind", "mail"), text("to", "a@b"), payload["number"].to_string());
            context.because_of(event).plan_effect(new)?;
        }
        Ok(())
    }
}
