//! Aggregates: pure decisions on the events of one stream, and the repository that runs them.
//!
//! An aggregate never does I/O, never reads a clock and never makes an id: whatever it needs to know comes
//! in with the command or the context. So a test needs no database: [`given`] these events, when this command,
//! then those events or a refusal.
//!
//! A shopping cart, from the rules to the log:
//!
//! ```
#![doc = include_str!("../examples/shopping_cart.rs")]
//! ```

mod decision;
mod error;
mod given;
mod in_handler;
mod provenance;
mod provide;
mod repository;
mod rules;
mod snapshots;

pub use error::ExecuteError;
pub use given::{Given, When, given};
pub use in_handler::AsOf;
pub use provenance::{Provenance, event_id};
pub use provide::ContextProvider;
pub use repository::{Executed, Repository};
pub use rules::{CommandRules, Needs};

use store::{Event, InvalidJson, NewEvent, UndecodableEvent};
use subscription_engine::PastEvent;

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

    /// The category of its streams: `channel` for `channel-<id>`. A command for any other stream is refused. Without
    /// this its streams can have any name.
    const CATEGORY: Option<&'static str> = None;

    /// What a command needs, and what it may bring about. Without this it needs nothing and may bring about anything.
    fn rules(_: &Self::Command) -> CommandRules {
        CommandRules::default()
    }

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
    /// As [`EventSet::decode`], of what a handler sees of a stream.
    fn decode_past(event: &PastEvent) -> Option<Result<Self, UndecodableEvent>>;
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

            fn decode_past(
                event: &$crate::log::PastEvent,
            ) -> Option<Result<Self, $crate::log::UndecodableEvent>> {
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
    pub use subscription_engine::PastEvent;
}
