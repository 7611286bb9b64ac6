//! Aggregates: pure decisions on the events of one stream, and the repository that runs them.
//!
//! An aggregate never does I/O, never reads a clock and never makes an id: whatever it needs to know comes
//! in with the command or the context. So a test needs no database: given these events, when this command,
//! then those events or a refusal.

mod repository;
mod snapshots;

pub use repository::{ExecuteError, Executed, Provenance, Repository};

use store::{Event, InvalidJson, NewEvent, UndecodableEvent};

/// A unit of consistency: rules about what may happen next in one stream.
pub trait Aggregate {
    /// What the rules need to know of the past.
    type State: Default;
    /// What can happen.
    type Event: EventSet;
    /// What can be asked for.
    type Command;
    /// What a decision needs besides the past, such as the time; provided by whoever may read it.
    type Context;
    /// Why something may not happen.
    type Refusal: std::error::Error + Send + Sync + 'static;

    /// What is to happen, in order. Nothing is a success: the command asks for what is so already.
    fn decide(
        state: &Self::State,
        command: &Self::Command,
        context: &Self::Context,
    ) -> Result<Vec<Self::Event>, Self::Refusal>;

    /// The state after an event.
    fn evolve(state: Self::State, event: &Self::Event) -> Self::State;
}

/// The events of one aggregate: an enum with one variant for each [`store::DomainEvent`].
pub trait EventSet: Sized {
    /// Reads an event of the log; none for a type that this aggregate does not know.
    fn decode(event: &Event) -> Option<Result<Self, UndecodableEvent>>;
    /// The event as the log takes it.
    fn encode(&self) -> Result<NewEvent, InvalidJson>;
}

/// Makes an enum of [`store::DomainEvent`]s an [`EventSet`]: each variant is called like the type it holds.
#[macro_export]
macro_rules! event_set {
    ($(#[$meta:meta])* $visibility:vis enum $name:ident { $($event:ident),+ $(,)? }) => {
        $(#[$meta])*
        $visibility enum $name {
            $(#[doc = concat!("See [`", stringify!($event), "`].")] $event($event)),+
        }

        impl $crate::EventSet for $name {
            fn decode(event: &$crate::log::Event) -> Option<Result<Self, $crate::log::UndecodableEvent>> {
                $(if let Some(decoded) = event.decode::<$event>() {
                    return Some(decoded.map(Self::$event));
                })+
                None
            }

            fn encode(&self) -> Result<$crate::log::NewEvent, $crate::log::InvalidJson> {
                match self { $(Self::$event(event) => $crate::log::NewEvent::of(event)),+ }
            }
        }
    };
}

/// What [`event_set!`] needs of the log.
#[doc(hidden)]
pub mod log {
    pub use store::{Event, InvalidJson, NewEvent, UndecodableEvent};
}
