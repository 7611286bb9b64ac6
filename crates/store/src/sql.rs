//! SQL text that is safe to run: literals, and table names that were checked.
//!
//! Values are always bound. The only thing ever put into a statement is a [`TableName`], in place of `{t}`.

use std::borrow::Cow;
use std::fmt;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

use crate::database::DatabaseKind;

/// A statement: a literal, or a literal with a checked table name.
///
/// `{now}` stands for the database's own clock, `{rows}` for the rows of [`crate::Tx::execute_many`].
#[derive(Clone, Debug)]
pub struct Sql(Cow<'static, str>);

/// The name of a table: `[a-z_][a-z0-9_]{0,62}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName(String);

/// The text is no table name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no table name: use a to z, 0 to 9 and _, at most 63 characters, no digit first")]
pub struct InvalidTableName(String);

impl Sql {
    /// The statement with the table's name in place of each `{t}`.
    pub fn named(template: &'static str, table: &TableName) -> Self {
        Self(Cow::Owned(template.replace("{t}", &table.0)))
    }

    /// A statement that this crate put together from literals.
    pub(crate) fn built(text: String) -> Self {
        Self(Cow::Owned(text))
    }

    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    /// The statement as the database gets it.
    pub(crate) fn for_database(self, kind: DatabaseKind) -> SqlStr {
        if self.0.contains("{now}") {
            return AssertSqlSafe(self.0.replace("{now}", kind.now())).into_sql_str();
        }
        match self.0 {
            Cow::Borrowed(literal) => literal.into_sql_str(),
            Cow::Owned(text) => AssertSqlSafe(text).into_sql_str(),
        }
    }
}

impl From<&'static str> for Sql {
    fn from(literal: &'static str) -> Self {
        Self(Cow::Borrowed(literal))
    }
}

impl TableName {
    /// Checks the name.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidTableName> {
        let name = name.into();
        let starts_well = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
        let goes_on_well = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        if starts_well && goes_on_well && name.len() <= 63 {
            Ok(Self(name))
        } else {
            Err(InvalidTableName(name))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_are_checked() {
        for name in ["inbox", "_x", "a1", &"a".repeat(63)] {
            assert!(TableName::new(name).is_ok(), "{name}");
        }
        for name in ["", "1a", "Inbox", "a-b", "a;drop table b", "a\"", &"a".repeat(64)] {
            assert!(TableName::new(name).is_err(), "{name}");
        }
    }
}
