//! Where a log lives: what tells its place from every other one, as far as the database lets us know.
//!
//! A copy of a database believes to be the original. What cannot be copied along is the place: the very file, or the
//! server, database and schema. Nothing here decides what follows from a place; that is `arrival.rs`.

use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::database::Database;

/// A place where a log can live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Place {
    /// A file.
    Sqlite {
        /// Its path, without links.
        file: String,
        /// The device on which it is. The number may be another one after a restart of the machine.
        device: u64,
        /// Its number there.
        inode: u64,
    },
    /// A schema on a server.
    Postgres {
        /// The system identifier of the cluster; none where the server does not tell.
        system: Option<String>,
        /// The database's number in the cluster, and its name when this was written down.
        database: i64,
        /// See `database`.
        database_name: String,
        /// The schema's number in the database, and its name when this was written down.
        schema: i64,
        /// See `schema`.
        schema_name: String,
    },
}

impl Place {
    /// The place of the log in this database.
    pub(crate) async fn of(database: &Database) -> sqlx::Result<Self> {
        match database {
            Database::Sqlite { file, .. } => Self::of_file(file).map_err(sqlx::Error::Io),
            Database::Postgres { pool, .. } => {
                let (number, name, schema, schema_name) = sqlx::query_as(
                    "SELECT d.oid::bigint, d.datname::text, n.oid::bigint, n.nspname::text
                       FROM pg_class c
                       JOIN pg_namespace n ON n.oid = c.relnamespace
                       JOIN pg_database d ON d.datname = current_database()
                      WHERE c.oid = 'herald_log'::regclass",
                )
                .fetch_one(pool)
                .await?;
                let system: sqlx::Result<String> =
                    sqlx::query_scalar("SELECT system_identifier::text FROM pg_control_system()")
                        .fetch_one(pool)
                        .await;
                let system = match system {
                    Ok(system) => Some(system),
                    // The server keeps it to itself, or has no such function.
                    Err(sqlx::Error::Database(_)) => None,
                    Err(error) => return Err(error),
                };
                Ok(Self::Postgres { system, database: number, database_name: name, schema, schema_name })
            }
        }
    }

    fn of_file(file: &Path) -> std::io::Result<Self> {
        let file = file.canonicalize()?;
        let metadata = file.metadata()?;
        // A name that is no text is shown with marks in it: it is compared with another one that was made so.
        let file = file.to_string_lossy().into_owned();
        Ok(Self::Sqlite { file, device: metadata.dev(), inode: metadata.ino() })
    }

    /// Whether both are the same place, whatever it was called.
    ///
    /// A file may be reached by several paths (links, mounts, containers), and its device may be numbered anew when
    /// the machine starts. A schema and a database may be renamed. What one of the two does not know is not compared.
    pub(crate) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Sqlite { file, device, inode },
                Self::Sqlite { file: other_file, device: other_device, inode: other_inode },
            ) => inode == other_inode && (device == other_device || file == other_file),
            (
                Self::Postgres { system, database, schema, .. },
                Self::Postgres {
                    system: other_system, database: other_database, schema: other_schema, ..
                },
            ) => {
                let systems = system.as_ref().zip(other_system.as_ref());
                database == other_database
                    && schema == other_schema
                    && systems.is_none_or(|(system, other)| system == other)
            }
            _ => false,
        }
    }

    /// Whether this file is the one at this place right now.
    pub(crate) fn is_file(&self, metadata: &Metadata) -> bool {
        match self {
            Self::Sqlite { device, inode, .. } => *device == metadata.dev() && *inode == metadata.ino(),
            Self::Postgres { .. } => false,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { file, .. } => f.write_str(file),
            Self::Postgres { system, database, database_name, schema, schema_name } => {
                write!(f, "schema {schema_name} ({schema}) in database {database_name} ({database})")?;
                match system {
                    Some(system) => write!(f, " of cluster {system}"),
                    None => f.write_str(" of a cluster that does not tell its identity"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(file: &str, device: u64, inode: u64) -> Place {
        Place::Sqlite { file: file.to_owned(), device, inode }
    }

    fn schema(system: Option<&str>, database: i64, schema: i64, name: &str) -> Place {
        let system = system.map(str::to_owned);
        let (database_name, schema_name) = (name.to_owned(), name.to_owned());
        Place::Postgres { system, database, database_name, schema, schema_name }
    }

    #[test]
    fn s22_a_file_is_the_same_by_another_path_and_after_a_restart_of_the_machine() {
        let recorded = file("/var/lib/herald.db", 1, 5);
        assert!(recorded.is(&file("/data/herald.db", 1, 5)), "a mount, a link, a container, a new name");
        assert!(recorded.is(&file("/var/lib/herald.db", 2, 5)), "the device is numbered anew");
        assert!(!recorded.is(&file("/var/lib/herald.db", 1, 6)), "another file took its name");
        assert!(!recorded.is(&file("/data/herald.db", 2, 5)), "another file on another device");
    }

    #[test]
    fn s22_a_schema_is_the_same_whatever_it_is_called() {
        let recorded = schema(Some("7"), 5, 2200, "public");
        assert!(recorded.is(&schema(Some("7"), 5, 2200, "renamed")));
        assert!(recorded.is(&schema(None, 5, 2200, "public")), "a server that does not tell is believed");
        for other in [
            schema(Some("8"), 5, 2200, "public"),
            schema(Some("7"), 6, 2200, "public"),
            schema(Some("7"), 5, 2201, "public"),
        ] {
            assert!(!recorded.is(&other), "{other}");
        }
        assert!(!recorded.is(&file("public", 5, 2200)));
    }
}
