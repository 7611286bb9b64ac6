//! What a database said, as a value of our own: for the SQLite connections that are not sqlx's, and for telling
//! several callers of one failure.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;

use sqlx::error::{DatabaseError, ErrorKind};

/// A refusal of the database.
#[derive(Clone, Debug)]
struct Refusal {
    code: Option<String>,
    message: String,
    breaks_uniqueness: bool,
}

/// An error of an SQLite connection of ours in the shape in which everything else here says it.
pub(crate) fn from_rusqlite(error: rusqlite::Error) -> sqlx::Error {
    use rusqlite::ffi::{SQLITE_CONSTRAINT_PRIMARYKEY, SQLITE_CONSTRAINT_UNIQUE};
    match error {
        rusqlite::Error::SqliteFailure(failure, message) => sqlx::Error::Database(Box::new(Refusal {
            code: Some(failure.extended_code.to_string()),
            message: message.unwrap_or_else(|| failure.to_string()),
            breaks_uniqueness: matches!(
                failure.extended_code,
                SQLITE_CONSTRAINT_UNIQUE | SQLITE_CONSTRAINT_PRIMARYKEY
            ),
        })),
        error => sqlx::Error::Decode(Box::new(error)),
    }
}

/// The same failure once more, for the next one whom it concerns: of the same kind, in the same words.
pub(crate) fn again(error: &sqlx::Error) -> sqlx::Error {
    match error {
        sqlx::Error::Database(said) => sqlx::Error::Database(Box::new(Refusal {
            code: said.code().map(Cow::into_owned),
            message: said.message().to_owned(),
            breaks_uniqueness: said.is_unique_violation(),
        })),
        sqlx::Error::Io(error) => sqlx::Error::Io(io::Error::new(error.kind(), error.to_string())),
        sqlx::Error::PoolTimedOut => sqlx::Error::PoolTimedOut,
        sqlx::Error::PoolClosed => sqlx::Error::PoolClosed,
        sqlx::Error::WorkerCrashed => sqlx::Error::WorkerCrashed,
        error => sqlx::Error::Protocol(error.to_string()),
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(f, "(code: {code}) {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl Error for Refusal {}

impl DatabaseError for Refusal {
    fn message(&self) -> &str {
        &self.message
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        self.code.as_deref().map(Cow::Borrowed)
    }

    fn kind(&self) -> ErrorKind {
        if self.breaks_uniqueness { ErrorKind::UniqueViolation } else { ErrorKind::Other }
    }

    fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
        self
    }
}
