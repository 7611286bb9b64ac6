//! Who has read how far, and moving them on.
//!
//! A [`Subscriber`] is code that wants events; its [`Subscription`] is the row that says how far it has read
//! and in which state it is. The [`Engine`] moves subscriptions one [unit](Engine::run) at a time: a page of
//! events, handled in one transaction that also moves the position. A [`Worker`] does so for ever. This
//! crate knows no concrete subscriber, no network and no notification.

mod blocked;
mod checkpoint;
mod clock;
mod context;
mod cursor;
mod dead_letters;
mod definition_record;
mod effects;
mod emit;
mod engine;
mod feed;
mod fold;
mod gate;
mod handlers;
mod letters;
mod lifecycle;
mod look_back;
mod markers;
mod migrations;
mod park;
mod poison;
mod progress;
mod records;
mod retry;
mod rows;
mod run_after_append;
mod runner;
mod skip;
mod stalls;
mod standing;
mod state_projection;
mod steer;
mod strict;
mod subscriber;
mod subscription;
mod timers;
mod unit;
mod wait;
mod worker;
mod worker_row;

pub use checkpoint::{BadCheckpoint, Stray};
pub use clock::ClockAdvanceError;
pub use context::{Cause, Context, ContextError, LoadedStream, PastEvent};
pub use dead_letters::{DeadLetter, LetterFilter, Reason};
pub use definition_record::DefinitionRecord;
pub use effects::{
    Answer, Delivered, Delivery, Effect, EffectCounts, EffectFilter, EffectHistoryLine, EffectOutcome,
    EffectRecord, EffectState, EffectStatus, Happened, Hold, ImpossibleStep, InDoubt, InvalidEffect,
    NewEffect, Pacing, Sending, Terms, Wanted,
};
pub use emit::{Emission, LINKED_FIELD, Linked, emitted_stream};
pub use engine::{
    Criteria, Engine, EngineError, FaultPoint, Faults, Outcome, Overview, Report, Settings, WORKER_SILENCE,
};
pub use fold::{Fold, FoldError};
pub use handlers::{Folded, Handlers};
pub use letters::LetterReport;
pub use look_back::LookBack;
pub use migrations::MIGRATIONS;
pub use poison::{KeyFunction, Letters, ParkKey, Parked, Poison};
pub use records::{BadRow, HistoryLine, RecordError};
pub use retry::{DelayFunction, RetryStrategies, RetryStrategy};
pub use standing::{Stall, Standing};
pub use state_projection::{KeptState, StateError, StateProjection};
pub use steer::Placing;
pub use strict::{SubscriptionsFailed, none_failed};
pub use subscriber::{BoxError, Definition, Kind, RegisterError, Registry, RunMode, Subscriber};
pub use subscription::{
    FailedEvent, Failure, Impossible, Resume, State, Status, Subscription, Transition, next,
};
pub use timers::{FiredTimers, InvalidTimer, Timer, TimerCounts, TimerOutcome, TimerRecord};
pub use wait::Waited;
pub use worker::Worker;
pub use worker_row::WorkerRow;

/// Compiles the README's example.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
