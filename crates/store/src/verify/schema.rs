//! The file, the indexes and the sequence: what reads and appends rely on.

use super::{Finding, Report, Told};
use crate::database::{Database, DatabaseKind};
use crate::migrate::Migration;
use crate::read::ReadError;
use crate::store::{StoreError, check_sequence};

/// So many faults of a file are told.
const FILE_FAULTS: u32 = 100;

/// A key that must be unique (PostgreSQL; SQLite does not let go of its own).
pub(super) struct Key {
    pub(super) name: &'static str,
    table: &'static str,
    columns: &'static str,
    pub(super) create: &'static str,
}

pub(super) const KEYS: [Key; 4] = [
    Key {
        name: "herald_events_pkey",
        table: "herald_events",
        columns: "position",
        create: "ALTER TABLE herald_events ADD CONSTRAINT herald_events_pkey PRIMARY KEY (position)",
    },
    Key {
        name: "herald_events_id_key",
        table: "herald_events",
        columns: "id",
        create: "ALTER TABLE herald_events ADD CONSTRAINT herald_events_id_key UNIQUE (id)",
    },
    Key {
        name: "herald_events_stream_version_key",
        table: "herald_events",
        columns: "stream, version",
        create: "ALTER TABLE herald_events ADD CONSTRAINT herald_events_stream_version_key UNIQUE (stream, version)",
    },
    Key {
        name: "herald_streams_pkey",
        table: "herald_streams",
        columns: "stream",
        create: "ALTER TABLE herald_streams ADD CONSTRAINT herald_streams_pkey PRIMARY KEY (stream)",
    },
];

impl<T: FnMut(Told) + Send> Report<'_, T> {
    /// SQLite's own look at the whole file. PostgreSQL has checksums and its own tools for that.
    pub(super) async fn file(&mut self) -> Result<(), ReadError> {
        let Database::Sqlite { threads, .. } = self.store.database() else { return Ok(()) };
        if self.what.quick {
            return Ok(());
        }
        let look = move |connection: &mut rusqlite::Connection| {
            let mut statement = connection.prepare(&format!("PRAGMA integrity_check({FILE_FAULTS})"))?;
            statement.query_map((), |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()
        };
        for what in threads.read(look).await? {
            if what != "ok" {
                self.found(Finding::Damaged { what }).await;
            }
        }
        Ok(())
    }

    pub(super) async fn indexes(&mut self) -> Result<(), ReadError> {
        let database = self.store.database();
        let there: Vec<(String,)> = match database.kind() {
            DatabaseKind::Sqlite => {
                let sql = "SELECT name FROM sqlite_master WHERE type = 'index'";
                database.fetch_all(sql, ()).await?
            }
            DatabaseKind::Postgres => {
                let sql = "SELECT c.relname::text
                             FROM pg_index i
                             JOIN pg_class c ON c.oid = i.indexrelid
                            WHERE i.indisvalid
                              AND c.relnamespace =
                                  (SELECT relnamespace FROM pg_class WHERE oid = 'herald_log'::regclass)";
                database.fetch_all(sql, ()).await?
            }
        };
        let applied: Vec<(i64,)> =
            database.fetch_all("SELECT number FROM herald_migrations ORDER BY number", ()).await?;
        let run = self.store.migrations().iter().filter(|migration| applied.contains(&(migration.number,)));
        let mut missing: Vec<String> = indexes(run, database.kind())
            .into_iter()
            .map(|(name, _)| name.to_owned())
            .filter(|name| there.iter().all(|(there,)| there != name))
            .collect();
        if database.kind() == DatabaseKind::Postgres {
            for key in KEYS {
                if !self.has_key(&key).await? {
                    missing.push(key.name.to_owned());
                }
            }
        }
        for index in missing {
            self.found(Finding::MissingIndex { index }).await;
        }
        Ok(())
    }

    /// Whether some index keeps these columns unique, whatever its name.
    async fn has_key(&self, key: &Key) -> Result<bool, ReadError> {
        let sql = "SELECT CAST(1 AS BIGINT)
                     FROM pg_index i
                    WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL
                      AND $2 = (SELECT string_agg(a.attname, ', ' ORDER BY k.place)
                                  FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS k(number, place)
                                  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number)
                    LIMIT 1";
        let row: Option<(i64,)> = self.store.database().fetch_optional(sql, (key.table, key.columns)).await?;
        Ok(row.is_some())
    }

    pub(super) async fn sequence(&mut self) -> Result<(), ReadError> {
        match check_sequence(self.store.database()).await {
            Ok(()) => Ok(()),
            Err(StoreError::BadSequence(bad)) => {
                self.found(Finding::Sequence(bad)).await;
                Ok(())
            }
            Err(StoreError::Database(error)) => Err(error.into()),
            Err(error) => Err(sqlx::Error::Protocol(error.to_string()).into()),
        }
    }
}

/// The indexes that migrations make, and how: what the migrations say is true, and nothing says it twice.
pub(super) fn indexes<'a>(
    migrations: impl IntoIterator<Item = &'a Migration>,
    kind: DatabaseKind,
) -> Vec<(&'static str, &'static str)> {
    let mut found: Vec<(&'static str, &'static str)> = Vec::new();
    for migration in migrations {
        let text = match kind {
            DatabaseKind::Sqlite => migration.sqlite,
            DatabaseKind::Postgres => migration.postgres,
        };
        let mut rest = text;
        while !rest.is_empty() {
            let line = rest.split_inclusive('\n').next().unwrap_or(rest);
            if let Some(of) = line.strip_prefix("CREATE INDEX ").or(line.strip_prefix("CREATE UNIQUE INDEX "))
            {
                let statement = rest.split_once(';').map_or(rest, |(statement, _)| statement);
                found.push((first_word(of), statement));
            } else if let Some(of) = line.strip_prefix("DROP INDEX ") {
                let name = first_word(of.strip_prefix("IF EXISTS ").unwrap_or(of));
                found.retain(|(known, _)| *known != name);
            }
            rest = &rest[line.len()..];
        }
    }
    found
}

fn first_word(text: &'static str) -> &'static str {
    text.split(|c: char| c.is_whitespace() || c == ';').next().unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::MIGRATIONS;

    #[test]
    fn s22_the_indexes_are_read_out_of_the_migrations() {
        for kind in [DatabaseKind::Sqlite, DatabaseKind::Postgres] {
            let indexes = indexes(MIGRATIONS, kind);
            for name in [
                "herald_events_type",
                "herald_events_category",
                "herald_events_correlation",
                "herald_streams_category",
            ] {
                let (_, statement) = indexes.iter().find(|(known, _)| *known == name).unwrap();
                assert!(
                    statement.starts_with("CREATE INDEX ") && statement.ends_with([')', 'L']),
                    "{statement}"
                );
            }
        }
        let gone = Migration {
            number: 1,
            name: "x",
            sqlite: "CREATE INDEX a ON b (c);\nDROP INDEX a;\n",
            postgres: "",
        };
        assert_eq!(indexes([&gone], DatabaseKind::Sqlite), []);
    }
}
