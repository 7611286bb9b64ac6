//! The log's clock: the machine's, or in test mode one that only moves when it is told to.
//!
//! Whether a log is in test mode is decided when it is set up and never changes. The manual time is a row,
//! so every process that shares the log reads the same time; each decision that depends on time asks anew.

use crate::database::Database;
use crate::timestamp::Timestamp;
use crate::tx::Tx;
use crate::wake::Signal;

const TEST_TIME: &str = "SELECT test_time FROM herald_log";

/// Tells the time by which this log lives.
#[derive(Clone, Debug)]
pub struct Clock {
    database: Database,
    signal: Signal,
    manual: bool,
}

/// Why the clock could not be set.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    /// The log lives by the machine's clock.
    #[error("this log is not in test mode: only one set up with a test clock can have its time set")]
    NotInTestMode,
    /// Time does not run backwards.
    #[error("the time is already {now}; it cannot be set back to {wanted}")]
    Backwards {
        /// The time it is.
        now: Timestamp,
        /// The time asked for.
        wanted: Timestamp,
    },
    /// The database refused.
    #[error("could not read or set the log's clock")]
    Database(#[from] sqlx::Error),
}

impl Clock {
    pub(crate) fn new(database: Database, signal: Signal, manual: bool) -> Self {
        Self { database, signal, manual }
    }

    /// Whether the time is set by hand.
    pub fn is_manual(&self) -> bool {
        self.manual
    }

    /// The time it is now.
    pub async fn now(&self) -> sqlx::Result<Timestamp> {
        if !self.manual {
            return Ok(Timestamp::system());
        }
        let row: Option<(Timestamp,)> = self.database.fetch_optional(TEST_TIME, ()).await?;
        row.map(|row| row.0).ok_or(sqlx::Error::RowNotFound)
    }

    /// How many microseconds the database's own clock is ahead of this machine's, or behind it if less than zero; as
    /// far as the time that it takes to ask lets us know.
    pub async fn skew_us(&self) -> sqlx::Result<i64> {
        let before = Timestamp::system().as_micros();
        let row: Option<(Timestamp,)> = self.database.fetch_optional("SELECT {now}", ()).await?;
        let after = Timestamp::system().as_micros();
        let there = row.ok_or(sqlx::Error::RowNotFound)?.0.as_micros();
        Ok(if there < before { there - before } else { (there - after).max(0) })
    }

    /// The time that events of this SQLite transaction are recorded with.
    pub(crate) async fn recorded_in(&self, tx: &mut Tx) -> sqlx::Result<Timestamp> {
        if !self.manual {
            return Ok(Timestamp::system());
        }
        let row: Option<(Timestamp,)> = tx.fetch_optional(TEST_TIME, ()).await?;
        row.map(|row| row.0).ok_or(sqlx::Error::RowNotFound)
    }

    /// Sets the manual time and wakes every process that waits. Whether they have caught up with it is not
    /// waited for here.
    pub async fn set(&self, wanted: Timestamp) -> Result<(), ClockError> {
        if !self.manual {
            return Err(ClockError::NotInTestMode);
        }
        let sql = "UPDATE herald_log SET test_time = $1 WHERE test_time <= $1";
        if self.database.execute(sql, (wanted,)).await? == 0 {
            return Err(ClockError::Backwards { now: self.now().await?, wanted });
        }
        self.signal.send();
        Ok(())
    }
}
