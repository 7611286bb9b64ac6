//! The event log: events in, events out, one transaction type.
//!
//! An event is appended to a stream under an expected version and gets a global position. Readers see
//! positions in an order that never changes behind them: whoever has read up to position *p* never finds
//! an event at or below *p* later. This crate knows nothing of subscriptions; it lends its transaction
//! type to those who must commit their own rows together with what they append.

mod append;
mod arrival;
mod backup;
mod clock;
mod closed;
mod connection;
mod database;
mod database_error;
mod domain_event;
mod errand;
mod event;
mod export;
mod export_format;
mod fault;
mod file_changes;
mod filter;
mod follow_up;
mod guard;
mod hooks;
mod import;
mod in_memory;
mod json;
mod lifeline;
mod migrate;
mod part_file;
mod place;
mod read;
mod safe_head;
mod schema_version;
mod snapshot;
mod sql;
mod sqlite_thread;
mod stats;
mod store;
mod stream_metadata;
mod stream_name;
mod streams;
mod timestamp;
mod tx;
mod upcast;
mod values;
mod verify;
mod wake;

pub use append::{Append, AppendError, Appended, ExpectedVersion, refuse_appends};
pub use arrival::{LogPlace, PastPlace, PlaceError};
pub use backup::{Backup, BackupError, DumpError};
pub use clock::{Clock, ClockError};
pub use closed::{CLOSED, CloseError};
pub use connection::Connection;
pub use database::{ConnectError, Database, DatabaseKind, Durability, Options, Secret, Target};
pub use domain_event::{DomainEvent, UndecodableEvent, decode};
pub use event::{Event, InvalidEvent, MAX_APPEND_EVENTS, MAX_METADATA_BYTES, MAX_PAYLOAD_BYTES, NewEvent};
pub use event::{Position, Version};
pub use export::{ExchangeProgress, ExportError, Exported};
pub use fault::{Fault, messages};
pub use filter::{Filter, InvalidMatch, MatchScalar, MatchValue, Matcher, Operator, UnknownSpecialStream};
pub use follow_up::{FollowUp, Following};
pub use guard::{BoxError, panic_message};
pub use hooks::{Draft, Hook, Hooks, MetadataEnricher, Reading};
pub use import::{ImportError, ImportMode, Imported};
pub use json::{InvalidJson, Json, MAX_JSON_DEPTH};
pub use migrate::{MIGRATIONS, MigrateError, Migration, Schema};
pub use part_file::FileError;
pub use place::Place;
pub use read::{Direction, Events, MAX_LOOKED_AT, MAX_PAGE_BYTES, MAX_PAGE_EVENTS, Page, Pages, ReadError};
pub use read::{RawColumn, RawEvent, StreamPage};
pub use safe_head::{Head, HeadReport, Holder, HolderKind, Published, Run};
pub use schema_version::{InvalidSchemaVersion, SCHEMA_VERSION_FIELD};
pub use snapshot::{KEPT_SNAPSHOTS, MAX_SNAPSHOT_BYTES, Snapshot, SnapshotError};
pub use sql::{InvalidTableName, Sql, TableName};
pub use stats::{Statistics, TypeStatistics};
pub use store::{BadSequence, LogIdentity, Setup, Store, StoreError};
pub use stream_metadata::{StreamMetadata, StreamMetadataError};
pub use stream_name::{InvalidStreamName, StreamName};
pub use streams::{ListedStream, MAX_PAGE_NAMES, StreamList, StreamSummary, SummaryError};
pub use timestamp::{InvalidTimestamp, Timestamp};
pub use tx::{Savepoint, Tx};
pub use upcast::{InvalidUpcasters, MAX_PARTS, Part, UpcastError, Upcaster, Upcasters};
pub use values::{Record, Value, Values};
pub use verify::{Finding, Found, Mended, Told, Verified, Verify};
pub use wake::Wake;
