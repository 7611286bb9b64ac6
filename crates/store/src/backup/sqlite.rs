//! The copy of an SQLite file, by SQLite's own backup.
//!
//! It runs on a connection of its own inside one read transaction. In write-ahead mode that keeps no writer waiting,
//! and no writer makes it begin anew, as happens to a backup without a transaction. (`VACUUM INTO` was the other
//! way: it takes longer, and its copy has lost the journal mode and rebuilt every index, hiding what is wrong with one.)

use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};

use super::BackupError;
use crate::connection::SQLITE_BUSY_TIMEOUT;
use crate::database_error::from_rusqlite;
use crate::event::Position;
use crate::part_file::PartFile;

/// What must agree between a log and its copy.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    log: Option<Vec<u8>>,
    head: i64,
}

pub(super) async fn copy(database: PathBuf, part: &PartFile) -> Result<Position, BackupError> {
    let part = part.part.clone();
    let job = tokio::task::spawn_blocking(move || copy_and_look(&database, &part));
    job.await.map_err(|_| sqlx::Error::WorkerCrashed)?
}

fn copy_and_look(database: &Path, part: &Path) -> Result<Position, BackupError> {
    let original = write_copy(database, part).map_err(from_rusqlite)?;
    let (verdict, copy) = look_through(part).map_err(from_rusqlite)?;
    if verdict != "ok" {
        return Err(BackupError::Damaged(verdict));
    }
    if copy != original {
        return Err(BackupError::Damaged(format!("it has {copy:?} where there was {original:?}")));
    }
    Ok(Position(copy.head))
}

fn write_copy(database: &Path, part: &Path) -> rusqlite::Result<Contents> {
    let from = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    from.busy_timeout(SQLITE_BUSY_TIMEOUT)?;
    let snapshot = from.unchecked_transaction()?;
    let contents = contents(&snapshot)?;
    let mut to = Connection::open_with_flags(part, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // Until it has its name the copy is nothing: it needs no journal, and is synced as a whole.
    to.pragma_update(None, "synchronous", "OFF")?;
    to.query_row("PRAGMA journal_mode = OFF", (), |_| Ok(()))?;
    match Backup::new(&from, &mut to)?.step(-1)? {
        StepResult::Done => Ok(contents),
        _ => Err(rusqlite::Error::SqliteFailure(
            rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
            Some("somebody else has the copy open".to_owned()),
        )),
    }
}

/// Reads every page of the copy from where it was written, without leaving files beside it.
fn look_through(part: &Path) -> rusqlite::Result<(String, Contents)> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let copy = Connection::open_with_flags(format!("file:{}?immutable=1", escaped(part)), flags)?;
    let verdict = copy.query_row("PRAGMA quick_check(1)", (), |row| row.get(0))?;
    Ok((verdict, contents(&copy)?))
}

fn contents(connection: &Connection) -> rusqlite::Result<Contents> {
    let sql = "SELECT (SELECT id FROM herald_log), coalesce((SELECT MAX(position) FROM herald_events), 0)";
    connection.query_row(sql, (), |row| Ok(Contents { log: row.get(0)?, head: row.get(1)? }))
}

/// A path as it stands in a URI.
fn escaped(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;

    let as_is = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~".contains(&byte);
    let bytes = path.as_os_str().as_bytes().iter();
    bytes
        .map(|byte| if as_is(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_a_uri_is_that_path() {
        assert_eq!(escaped(Path::new("/a b/ü?#%.db")), "/a%20b/%C3%BC%3F%23%25.db");
        let folder = std::env::temp_dir().join(format!("herald ?#% {}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder).unwrap();
        let (original, copy) = (folder.join("a.db"), folder.join("b.db"));
        let log = Connection::open(&original).unwrap();
        for migration in crate::migrate::MIGRATIONS {
            log.execute_batch(migration.sqlite).unwrap();
        }
        std::fs::write(&copy, "").unwrap();
        let result = copy_and_look(&original, &copy);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(result.unwrap(), Position::START);
    }
}
