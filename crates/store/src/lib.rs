//! The event log: events in, events out, one transaction type.
//!
//! An event is appended to a stream under an expected version and gets a global position. Readers see
//! positions in an order that never changes behind them: whoever has read up to position *p* never finds
//! an event at or below *p* later. This crate knows nothing of subscriptions; it lends its transaction
//! type to those who must commit their own rows together with what they append.

mod append;
mod clock;
mod connection;
mod database;
mod database_error;
mod domain_event;
mod event;
mod fault;
mod file_changes;
mod filter;
mod json;
mod migrate;
mod read;
mod safe_head;
mod sql;
mod sqlite_thread;
mod stats;
mod store;
mod stream_name;
mod timestamp;
mod tx;
mod values;
mod wake;

pub use append::{Append, AppendError, Appended, ExpectedVersion, refuse_appends};
pub use clock::{Clock, ClockError};
pub use connection::Connection;
pub use database::{ConnectError, Database, DatabaseKind, Durability, Options, Secret, Target};
pub use domain_event::{DomainEvent, UndecodableEvent};
pub use event::{Event, InvalidEvent, MAX_APPEND_EVENTS, MAX_METADATA_BYTES, MAX_PAYLOAD_BYTES, NewEvent};
pub use event::{Position, Version};
pub use fault::{Fault, messages};
pub use filter::{Filter, InvalidMatch, MatchScalar, MatchValue, Matcher, Operator, UnknownSpecialStream};
pub use json::{InvalidJson, Json, MAX_JSON_DEPTH};
pub use migrate::{MIGRATIONS, MigrateError, Migration, Schema};
pub use read::{Direction, MAX_LOOKED_AT, MAX_PAGE_BYTES, MAX_PAGE_EVENTS, Page, ReadError, StreamPage};
pub use safe_head::Head;
pub use sql::{InvalidTableName, Sql, TableName};
pub use stats::{Statistics, TypeStatistics};
pub use store::{LogIdentity, Setup, Store, StoreError};
pub use stream_name::{InvalidStreamName, StreamName};
pub use timestamp::{InvalidTimestamp, Timestamp};
pub use tx::{Savepoint, Tx};
pub use values::{Record, Value, Values};
pub use wake::Wake;
