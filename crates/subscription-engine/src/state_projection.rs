//! State projections: a whole read model as one JSON document, with the position up to which it is true.
//!
//! For what is small and read as a whole, such as totals: no table to design, no statement to write. The document
//! stands in a table of the subscriber, so it commits with its position and goes with its subscription, like any
//! other read model.

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use store::{Event, InvalidJson, Json, Position, Sql, Store, TableName};

use crate::context::Context;
use crate::fold::Fold;
use crate::subscriber::{BoxError, Definition, Subscriber};

/// It is read and written as a whole with every unit: what is larger belongs in rows.
const MAX_STATE_BYTES: usize = 1024 * 1024;

/// The name under which the definition knows its table.
const TABLE: &str = "state";
const CREATE: &str = "CREATE TABLE {t} (
    id        BIGINT PRIMARY KEY CHECK (id = 1),
    state     TEXT NOT NULL,
    position  BIGINT NOT NULL CHECK (position > 0))";
const READ: &str = "SELECT state, position FROM {t} WHERE id = 1";
const WRITE: &str = "INSERT INTO {t} (id, state, position)
    VALUES (1, $1, $2)
    ON CONFLICT (id) DO UPDATE
       SET state = excluded.state,
           position = CASE WHEN excluded.position > {t}.position THEN excluded.position ELSE {t}.position END";

/// A subscriber that folds its events into one state and keeps that as JSON.
#[derive(Debug)]
pub struct StateProjection<S> {
    definition: Definition,
    fold: Fold<S>,
}

/// A state as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptState<S> {
    /// The state.
    pub state: S,
    /// The last event that it has in it. The subscription may stand further on, and dead letters of before may be
    /// missing.
    pub position: Position,
}

/// Why a kept state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It was written in another form.
    #[error("the state in {table} is not of the form that the program knows; replay the projection")]
    OtherForm {
        /// Its table.
        table: TableName,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It cannot be written as JSON.
    #[error("the state for {table} cannot be written as JSON")]
    Unwritable {
        /// Its table.
        table: TableName,
        /// What is wrong.
        #[source]
        source: InvalidJson,
    },
    /// It has grown too large.
    #[error(
        "the state for {table} has {bytes} bytes, at most {MAX_STATE_BYTES} are allowed; keep rows instead"
    )]
    TooLarge {
        /// Its table.
        table: TableName,
        /// Its size.
        bytes: usize,
    },
    /// The database refused.
    #[error("could not read the state in {table}; it is there once its subscription is set up")]
    Database {
        /// Its table.
        table: TableName,
        /// What it said.
        #[source]
        source: sqlx::Error,
    },
}

impl<S: Serialize + DeserializeOwned + Default + Send + 'static> StateProjection<S> {
    /// Folds what the definition wants, and keeps the state in this table, which is its own.
    pub fn new(definition: Definition, table: &'static str, fold: Fold<S>) -> Self {
        Self { definition: definition.with_table(TABLE, table), fold }
    }

    /// The state as it is kept in a table; none before the first event.
    pub async fn kept_in(store: &Store, table: &TableName) -> Result<Option<KeptState<S>>, StateError> {
        let row = store.database().fetch_optional(Sql::named(READ, table), ()).await;
        let row = row.map_err(|source| StateError::Database { table: table.clone(), source })?;
        row.map(|row| kept(row, table)).transpose()
    }
}

fn kept<S: DeserializeOwned>(row: (String, Position), table: &TableName) -> Result<KeptState<S>, StateError> {
    let (text, position) = row;
    let other_form = |source| StateError::OtherForm { table: table.clone(), source };
    Ok(KeptState { state: serde_json::from_str(&text).map_err(other_form)?, position })
}

fn written<S: Serialize>(state: &S, table: &TableName) -> Result<Json, StateError> {
    let unwritable = |source| StateError::Unwritable { table: table.clone(), source };
    let json = Json::of(state).map_err(unwritable)?;
    match json.as_str().len() {
        bytes if bytes > MAX_STATE_BYTES => Err(StateError::TooLarge { table: table.clone(), bytes }),
        _ => Ok(json),
    }
}

#[async_trait]
impl<S: Serialize + DeserializeOwned + Default + Send + 'static> Subscriber for StateProjection<S> {
    fn definition(&self) -> Definition {
        self.definition.clone().wanted_by(&self.fold)
    }

    async fn setup(&self, context: &mut Context<'_>) -> Result<(), BoxError> {
        context.execute(TABLE, CREATE, ()).await?;
        Ok(())
    }

    async fn handle(&self, events: &[Event], context: &mut Context<'_>) -> Result<(), BoxError> {
        let Some(last) = events.last() else { return Ok(()) };
        let table = context.table(TABLE)?;
        let tx = context.tx().await?;
        let row: Option<(String, Position)> = tx.fetch_optional(Sql::named(READ, &table), ()).await?;
        let mut state = match row {
            Some(row) => kept(row, &table)?.state,
            None => S::default(),
        };
        self.fold.apply(&mut state, events)?;
        let state = written(&state, &table)?;
        tx.execute(Sql::named(WRITE, &table), (state.as_str(), last.position)).await?;
        Ok(())
    }
}
