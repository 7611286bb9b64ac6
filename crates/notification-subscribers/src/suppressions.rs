//! `suppressed_1`: the addresses to which nothing is sent any more, whoever they belong to.
//!
//! A recipient's own stream decides whether a mail is asked for. This table is the last look of whoever sends one: by
//! then the address may have been suppressed, and other mails than a recipient's go to it as well.

use std::collections::BTreeMap;

use async_trait::async_trait;
use store::{Event, Position, Sql, TableName, Tx};
use subscription_engine::{BoxError, Context, Definition, Folded, Handlers, Poison};

use crate::delivery::Suppressions;
use crate::recipient::EmailAddressWasSuppressed;

/// The table as the database calls it.
const TABLE: &str = "acme_notifications_suppressed";
const CREATE: &str = "CREATE TABLE {t} (
    address   TEXT PRIMARY KEY,
    reason    TEXT NOT NULL,
    position  BIGINT NOT NULL CHECK (position > 0))";
const INSERT: &str = "INSERT INTO {t} (address, reason, position) VALUES {rows}
    ON CONFLICT (address) DO NOTHING";
const READ: &str = "SELECT reason FROM {t} WHERE address = $1";

/// The first time that an address was suppressed counts.
#[derive(Debug, Default)]
pub struct Suppressed(BTreeMap<String, (String, Position)>);

impl Suppressed {
    fn suppressed(&mut self, suppressed: &EmailAddressWasSuppressed, event: &Event) {
        let first = (suppressed.reason.clone(), event.position);
        self.0.entry(suppressed.address.to_lowercase()).or_insert(first);
    }
}

#[async_trait]
impl Folded for Suppressed {
    async fn setup(context: &mut Context<'_>) -> Result<(), BoxError> {
        context.execute("suppressed", CREATE, ()).await?;
        Ok(())
    }

    async fn write(self, context: &mut Context<'_>) -> Result<(), BoxError> {
        let row = |(address, (reason, position))| (address, reason, position);
        context.execute_many("suppressed", INSERT, self.0.into_iter().map(row).collect()).await?;
        Ok(())
    }
}

/// Keeps the table.
pub fn suppression_projector() -> Handlers<Suppressed> {
    let definition =
        Definition::projector("suppressed_1").with_poison(Poison::park()).with_table("suppressed", TABLE);
    Handlers::new(definition).on(Suppressed::suppressed)
}

/// The addresses in the table, for whoever sends mails.
#[derive(Clone, Copy, Debug)]
pub struct SuppressedAddresses;

#[async_trait]
impl Suppressions for SuppressedAddresses {
    async fn why_suppressed(&self, address: &str, tx: &mut Tx) -> Result<Option<String>, BoxError> {
        why_suppressed(address, tx).await
    }
}

/// Why nothing is sent to an address any more; none if it may be used.
pub async fn why_suppressed(address: &str, tx: &mut Tx) -> Result<Option<String>, BoxError> {
    let sql = Sql::named(READ, &TableName::new(TABLE)?);
    let row: Option<(String,)> = tx.fetch_optional(sql, (address.to_lowercase(),)).await?;
    Ok(row.map(|row| row.0))
}
