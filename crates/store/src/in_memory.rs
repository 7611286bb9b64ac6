//! A log for tests and examples that needs nothing and leaves nothing behind (S-19).
//!
//! It is the SQLite log in a file of its own, so it behaves as every other: same statements, same limits, same
//! errors. The file lies in a private folder among the temporary ones, which is deleted with the last handle.

use crate::database::{ConnectError, Durability, Options};
use crate::migrate::{MIGRATIONS, Migration};
use crate::sql::TableName;
use crate::store::{Setup, Store, StoreError};

impl Store {
    /// A new log, set up and ready. It is gone with the last handle; a process that is killed leaves its folder
    /// behind among the temporary ones.
    pub async fn in_memory() -> Result<Self, StoreError> {
        let view = TableName::new("events").expect("it has nothing but small letters");
        Self::in_memory_with(&[MIGRATIONS], &Setup { view, test_clock: None }).await
    }

    /// As [`Store::in_memory`], set up in this way and with the tables of whoever else keeps rows there.
    pub async fn in_memory_with(migrations: &[&[Migration]], setup: &Setup) -> Result<Self, StoreError> {
        let folder = tempfile::Builder::new()
            .prefix("herald-")
            .tempdir()
            .map_err(|error| ConnectError::CannotCreate(std::env::temp_dir(), error))?;
        let url = format!("sqlite:{}", folder.path().join("log.db").display());
        // Nobody will look for it after a power cut.
        let options = Options { durability: Durability::PowerCutMayLoseCommits, ..Options::default() };
        let store = Self::open_in(Some(folder), &url, &options, migrations).await?;
        Ok(store.set_up(setup).await?.0)
    }
}
