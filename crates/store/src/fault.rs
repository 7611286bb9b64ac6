//! What kind of failure an error is, so that callers can act: wait, tell a person, or give up.

use std::error::Error;

use crate::append::{AppendError, is_duplicate_id};
use crate::database::ConnectError;
use crate::import::REFUSAL;
use crate::store::StoreError;

/// What is said where every connection stayed in use for as long as somebody waited for one.
const NO_CONNECTION_FREE: &str =
    "no connection became free: all are in use; end long transactions, or allow more connections";

/// What an error means for whoever met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It may go away by itself: a conflict, a lock, a lost connection, a full disk. Try again.
    Transient,
    /// Nobody answers where the database should be. Try again, or correct the address.
    Unreachable,
    /// The password or the user is wrong, or the user lacks a right.
    NotAllowed,
    /// The database or its file cannot be written.
    ReadOnly,
    /// There is no such database.
    NoSuchDatabase,
    /// The file is no database, or a damaged one.
    Damaged,
    /// Something else: a bug, or a value that does not fit.
    Other,
}

impl Fault {
    /// Looks through an error and its sources for the first one that tells.
    pub fn of(error: &(dyn Error + 'static)) -> Self {
        let mut current = Some(error);
        while let Some(error) = current {
            let fault = if let Some(error) = error.downcast_ref::<sqlx::Error>() {
                Self::of_sqlx(error)
            } else if let Some(
                AppendError::WrongVersion { .. }
                | AppendError::OutcomeUnknown(_)
                | AppendError::NotBegun { .. },
            ) = error.downcast_ref()
            {
                Self::Transient
            } else if let Some(error) = error.downcast_ref::<ConnectError>() {
                Self::of_connect(error)
            } else if let Some(StoreError::Connect(error)) = error.downcast_ref() {
                // Its message is the connection's, and so is its source: the error itself is not on the way.
                Self::of_connect(error)
            } else {
                Self::Other
            };
            if fault != Self::Other {
                return fault;
            }
            current = error.source();
        }
        Self::Other
    }

    fn of_connect(error: &ConnectError) -> Self {
        match error {
            ConnectError::NoSuchFile(_) => Self::NoSuchDatabase,
            ConnectError::CannotCreate(..) => Self::ReadOnly,
            ConnectError::InvalidUrl { .. } => Self::Other,
            // Whatever went wrong on the way there: a name that is not known, a port that stays silent.
            ConnectError::Refused { source: sqlx::Error::Io(_), .. } => Self::Unreachable,
            ConnectError::Refused { source, .. } => Self::of_sqlx(source),
        }
    }

    fn of_sqlx(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Io(error) => match error.kind() {
                std::io::ErrorKind::ConnectionRefused
                | std::io::ErrorKind::HostUnreachable
                | std::io::ErrorKind::NetworkUnreachable
                | std::io::ErrorKind::TimedOut
                | std::io::ErrorKind::NotFound => Self::Unreachable,
                // A connection that broke, or a name that could not be resolved just now.
                _ => Self::Transient,
            },
            sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed | sqlx::Error::Tls(_) => Self::Transient,
            // Another append has just used the id: who repeats the call learns what became of that one.
            _ if is_duplicate_id(error) => Self::Transient,
            // It ends with the import, and is nobody's failure.
            sqlx::Error::Database(error) if error.message().starts_with(REFUSAL) => Self::Transient,
            sqlx::Error::Database(error) => Self::of_code(error.code().as_deref().unwrap_or_default()),
            _ => Self::Other,
        }
    }

    /// PostgreSQL has codes of five characters, SQLite has numbers.
    fn of_code(code: &str) -> Self {
        if let Ok(number) = code.parse::<i32>()
            && code.len() < 5
        {
            // The low byte is the kind: 5 busy, 6 locked, 8 read-only, 10 I/O, 13 full, 14 cannot open, 26 no database.
            return match number & 0xFF {
                5 | 6 | 10 | 13 => Self::Transient,
                8 | 14 => Self::ReadOnly,
                26 | 11 => Self::Damaged,
                _ => Self::Other,
            };
        }
        match code {
            "28P01" | "28000" | "42501" => Self::NotAllowed,
            // No such database, no such schema.
            "3D000" | "3F000" => Self::NoSuchDatabase,
            "25006" => Self::ReadOnly,
            // Locked; the session was ended because it was idle, or because the server restarts.
            "55P03" | "25P03" | "57P05" | "57P01" | "57P02" | "57P03" => Self::Transient,
            _ if ["40", "53", "08", "58"].iter().any(|class| code.starts_with(class)) => Self::Transient,
            _ => Self::Other,
        }
    }
}

/// The messages of an error and its sources, outermost first, without repetitions; fit to be stored.
pub fn messages(error: &(dyn Error + 'static)) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    let mut current = Some(error);
    while let Some(error) = current {
        // What a database says is wrapped twice by the driver, each time with a prefix that helps nobody.
        let inner = match error.downcast_ref() {
            Some(sqlx::Error::Database(error)) => Some(error.message().to_owned()),
            Some(sqlx::Error::Io(error)) => Some(error.to_string()),
            Some(sqlx::Error::PoolTimedOut) => Some(NO_CONNECTION_FREE.to_owned()),
            _ => None,
        };
        current = if inner.is_some() { None } else { error.source() };
        // PostgreSQL's text cannot hold the character 0, and a failure must always be recorded.
        let message = inner.unwrap_or_else(|| error.to_string()).replace('\0', "\u{fffd}");
        // A transparent error repeats its source.
        if chain.last() != Some(&message) {
            chain.push(message);
        }
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s27_the_codes_of_both_databases() {
        let cases = [
            (
                Fault::Transient,
                &["5", "261", "6", "13", "778", "40001", "40P01", "53300", "08006", "57P03", "25P03"][..],
            ),
            (Fault::NotAllowed, &["28P01", "28000", "42501"]),
            (Fault::ReadOnly, &["8", "264", "14", "25006"]),
            (Fault::NoSuchDatabase, &["3D000", "3F000"]),
            (Fault::Damaged, &["26", "11"]),
            (Fault::Other, &["1", "19", "2067", "23505", "42P01", "22003", ""]),
        ];
        for (fault, codes) in cases {
            for code in codes {
                assert_eq!(Fault::of_code(code), fault, "{code}");
            }
        }
    }
}
