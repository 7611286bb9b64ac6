//! Backup: a copy of the database, log and read models and all, as it was at one moment, while everything runs.
//!
//! SQLite is copied page by page under one snapshot and looked through before the copy gets its name. PostgreSQL is
//! dumped by its own `pg_dump`. Neither keeps an append waiting.

mod postgres;
mod sqlite;

use std::path::Path;

use crate::database::{Database, DatabaseKind};
use crate::event::Position;
use crate::migrate::Schema;
use crate::part_file::{FileError, Leftover, PartFile};
use crate::store::Store;

pub use self::postgres::DumpError;

/// What was backed up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// Of which kind of database.
    pub kind: DatabaseKind,
    /// How large the file is.
    pub bytes: u64,
    /// The end of the log in it, where it was looked through (SQLite).
    pub head: Option<Position>,
}

/// Why there is no backup. A file of that name was not made.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is no log here.
    #[error("the event store is not set up: there is nothing to back up")]
    NotSetUp,
    /// The file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The copy is not what was copied.
    #[error("the copy is damaged ({0}); look at the database itself: `herald store verify`")]
    Damaged(String),
    /// `pg_dump` is needed, and does not do it.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// The database refused.
    #[error("could not copy the database")]
    Database(#[from] sqlx::Error),
}

impl Store {
    /// Writes a copy of the whole database to a file that must not be there. It appears when it is whole and synced.
    pub async fn back_up(&self, file: &Path) -> Result<Backup, BackupError> {
        // Of whatever version it is: before a migration a backup is wanted most.
        if self.schema().await? == Schema::Missing {
            return Err(BackupError::NotSetUp);
        }
        let part = PartFile::open(file, Leftover::Replace)?;
        let copied = match self.database() {
            Database::Sqlite { file, .. } => sqlite::copy(file.clone(), &part).await.map(Some),
            Database::Postgres { pool, .. } => postgres::dump(pool, &part).await.map(|()| None),
        };
        let head = match copied {
            Ok(head) => head,
            Err(error) => {
                part.discard();
                return Err(error);
            }
        };
        let bytes = part.file.metadata().map_err(|error| FileError::Refused(file.to_owned(), error))?.len();
        let finished = tokio::task::spawn_blocking(move || part.finish()).await;
        finished.map_err(|error| FileError::Refused(file.to_owned(), error.into()))??;
        Ok(Backup { kind: self.database().kind(), bytes, head })
    }
}
