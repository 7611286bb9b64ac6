//! Handlers: a function for each type of event, and one place that writes.
//!
//! The usual subscriber folds a page of events into a state and then writes once, which is what makes it fast. It
//! names its types by its handlers, so that none can be forgotten in its definition.

use async_trait::async_trait;
use store::{DomainEvent, Event};

use crate::context::Context;
use crate::fold::Fold;
use crate::subscriber::{BoxError, Definition, Subscriber};

/// What a page of events is folded into, and how that is written. It begins empty for each page.
#[async_trait]
pub trait Folded: Default + Send + 'static {
    /// Makes what it needs, such as its tables. Runs once, before the first event.
    async fn setup(_: &mut Context<'_>) -> Result<(), BoxError> {
        Ok(())
    }

    /// Writes what a page came to. Fails as a whole.
    async fn write(self, context: &mut Context<'_>) -> Result<(), BoxError>;

    /// Clears away what is not a table of its definition.
    async fn teardown(_: &mut Context<'_>) -> Result<(), BoxError> {
        Ok(())
    }
}

/// A subscriber that folds each page by type and then writes once.
///
/// A payload that is not what its type says is the failure of that event: what stands before it is handled.
#[derive(Debug)]
pub struct Handlers<S> {
    definition: Definition,
    fold: Fold<S>,
}

impl<S: Folded> Handlers<S> {
    /// A subscriber with this definition, which need not name types: it wants those of its handlers.
    pub fn new(definition: Definition) -> Self {
        Self { definition, fold: Fold::new() }
    }

    /// Events of this type do this to the state. Several handlers of one type are called in their order.
    #[must_use]
    pub fn on<E: DomainEvent>(self, handler: impl Fn(&mut S, &E, &Event) + Send + Sync + 'static) -> Self {
        Self { fold: self.fold.on(handler), ..self }
    }

    /// Every event that the definition wants does this, after the handlers of its type.
    #[must_use]
    pub fn any(self, handler: impl Fn(&mut S, &Event) + Send + Sync + 'static) -> Self {
        Self { fold: self.fold.any(handler), ..self }
    }
}

#[async_trait]
impl<S: Folded> Subscriber for Handlers<S> {
    fn definition(&self) -> Definition {
        self.definition.clone().wanted_by(&self.fold)
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        S::setup(context).await
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        let mut state = S::default();
        self.fold.apply(&mut state, events)?;
        state.write(context).await
    }

    async fn teardown(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        S::teardown(context).await
    }
}
