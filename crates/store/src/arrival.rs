//! What a program does about the place where it finds a log: at home, moved here, or a copy of one that may run.
//!
//! Two copies that run each send what the other one sends. So a log that was found elsewhere before is worked on
//! only where the original is gone for sure, or where a person has said so (`adopt`). Each change of place is a row
//! of `herald_log_places`, whose key lets one of several programs that arrive at once write it.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;

use rusqlite::OpenFlags;
use uuid::Uuid;

use crate::database::{Database, DatabaseKind};
use crate::fault::Fault;
use crate::migrate;
use crate::place::Place;
use crate::timestamp::Timestamp;

/// The migration that made the table.
const PLACES: i64 = 7;
/// Others that write at the same moment are read again at most so often.
const ROUNDS: u32 = 5;
/// How many changes of place are shown at most.
const HISTORY: i64 = 1_000;

/// Where a log lives, as the program that opened it has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPlace {
    /// Where it is.
    pub here: Place,
    /// How often it has changed its place, from 1; none if its place was never written down.
    pub epoch: Option<i64>,
    /// Where it was before, if it was this program that noticed that it has moved.
    pub moved_from: Option<Place>,
}

/// One line of a log's history of places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PastPlace {
    /// Its number.
    pub epoch: i64,
    /// Where.
    pub place: Place,
    /// Since when, by the database's clock.
    pub since: Timestamp,
    /// Why.
    pub why: String,
    /// By whom.
    pub who: String,
}

/// Why a log is not worked on at this place.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// The file from which this one was copied is still there.
    #[error(
        "this log is a copy: its original is still at {original}; if both run, each sends what the other one sends. \
         Use the original; or run `herald store adopt` if that one does not run any more"
    )]
    Copied {
        /// The original.
        original: Box<Place>,
    },
    /// There is something where the log lived before, and it cannot be looked at.
    #[error(
        "this log lived at {original} before, and whether it still does could not be seen ({why}); \
         run `herald store adopt` if that one does not run any more"
    )]
    Unsure {
        /// Where it lived.
        original: Box<Place>,
        /// What was in the way.
        why: String,
    },
    /// The log lived on another server, or in another database or schema.
    #[error(
        "this log lived in {recorded} and is now in {here}: it was restored, or it is a copy, which cannot be told \
         apart; run `herald store adopt` if the original does not run any more"
    )]
    Elsewhere {
        /// Where it lived.
        recorded: Box<Place>,
        /// Where it is.
        here: Box<Place>,
    },
    /// The table of places holds what no program of this version wrote.
    #[error("the place of epoch {epoch} in herald_log_places cannot be read; run `herald store adopt`")]
    BadRow {
        /// Its number.
        epoch: i64,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The database refused.
    #[error("could not read or write down where the log lives")]
    Database(#[from] sqlx::Error),
}

/// What the place says of the log.
enum Standing {
    /// Nothing is written down yet.
    Unknown,
    Home,
    /// The original is gone.
    Moved(Place),
    Refused(PlaceError),
}

struct Found {
    here: Place,
    epoch: i64,
    standing: Standing,
}

impl Found {
    fn place(self) -> LogPlace {
        LogPlace { here: self.here, epoch: (self.epoch > 0).then_some(self.epoch), moved_from: None }
    }
}

/// Looks where the log is; writes nothing. None before there is a place to write it down.
pub(crate) async fn look(database: &Database) -> Result<Option<(LogPlace, Option<PlaceError>)>, PlaceError> {
    if !migrate::has_run(database, PLACES).await? {
        return Ok(None);
    }
    let mut found = match find(database).await {
        Err(PlaceError::Database(error)) if Fault::of(&error) == Fault::NotAllowed => {
            return Ok(unseen(&error));
        }
        found => found?,
    };
    let refused = match std::mem::replace(&mut found.standing, Standing::Home) {
        Standing::Refused(error) => Some(error),
        _ => None,
    };
    Ok(Some((found.place(), refused)))
}

/// Arrives to work on the log: what is new is written down, a copy is refused.
pub(crate) async fn arrive(database: &Database) -> Result<Option<LogPlace>, PlaceError> {
    if !migrate::has_run(database, PLACES).await? {
        return Ok(None);
    }
    for _ in 0..ROUNDS {
        let mut found = match find(database).await {
            Err(PlaceError::Database(error)) if Fault::of(&error) == Fault::NotAllowed => {
                return Ok(unseen(&error));
            }
            found => found?,
        };
        let (from, why) = match std::mem::replace(&mut found.standing, Standing::Home) {
            Standing::Home => return Ok(Some(found.place())),
            Standing::Refused(error) => return Err(error),
            Standing::Unknown => (None, "found here".to_owned()),
            Standing::Moved(from) => {
                let why = format!("moved or restored here; it is gone from {from}");
                (Some(from), why)
            }
        };
        let epoch = found.epoch + 1;
        match write(database, epoch, &found.here, &why, "herald").await {
            Ok(true) => {
                if let Some(from) = &from {
                    tracing::warn!(
                        epoch,
                        "the log has moved from {from} to {}; it is in epoch {epoch} now",
                        found.here
                    );
                }
                return Ok(Some(LogPlace { here: found.here, epoch: Some(epoch), moved_from: from }));
            }
            // Another program has arrived at the same moment: read what it wrote.
            Ok(false) => {}
            // Who may not write here sends nothing from here either.
            Err(error) if matches!(Fault::of(&error), Fault::ReadOnly | Fault::NotAllowed) => {
                tracing::debug!(%error, "could not write down where the log lives");
                return Ok(Some(found.place()));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(others_are_at_it())
}

/// A role that may do little may not see where the log lives; what it may do is for its owner to say.
fn unseen<T>(error: &sqlx::Error) -> Option<T> {
    tracing::debug!(%error, "could not see where the log lives");
    None
}

/// Takes this place for the log's, on somebody's word. Answers where it was, or that it is at home already.
pub(crate) async fn adopt(database: &Database, why: &str, who: &str) -> Result<LogPlace, PlaceError> {
    let here = Place::of(database).await?;
    for _ in 0..ROUNDS {
        let last = last(database).await?;
        let (epoch, recorded) = match &last {
            None => (0, None),
            // Whatever stands there, it is not this place.
            Some((epoch, text)) => (*epoch, serde_json::from_str::<Place>(text).ok()),
        };
        if recorded.as_ref().is_some_and(|recorded| recorded.is(&here)) {
            return Ok(LogPlace { here, epoch: Some(epoch), moved_from: None });
        }
        if write(database, epoch + 1, &here, why, who).await? {
            return Ok(LogPlace { here, epoch: Some(epoch + 1), moved_from: recorded });
        }
    }
    Err(others_are_at_it())
}

fn others_are_at_it() -> PlaceError {
    sqlx::Error::Protocol("others keep writing down places; try again".to_owned()).into()
}

/// Where the log has lived, oldest first.
pub(crate) async fn history(database: &Database) -> Result<Vec<PastPlace>, PlaceError> {
    if !migrate::has_run(database, PLACES).await? {
        return Ok(Vec::new());
    }
    let sql = "SELECT epoch, place, since, why, who FROM herald_log_places ORDER BY epoch LIMIT $1";
    let rows: Vec<(i64, String, Timestamp, String, String)> = database.fetch_all(sql, (HISTORY,)).await?;
    let past = |(epoch, place, since, why, who): (i64, String, Timestamp, String, String)| {
        let place = serde_json::from_str(&place).map_err(|source| PlaceError::BadRow { epoch, source })?;
        Ok(PastPlace { epoch, place, since, why, who })
    };
    rows.into_iter().map(past).collect()
}

async fn last(database: &Database) -> sqlx::Result<Option<(i64, String)>> {
    let sql = "SELECT epoch, place FROM herald_log_places ORDER BY epoch DESC LIMIT 1";
    database.fetch_optional(sql, ()).await
}

/// Writes a place down unless somebody else was faster; says whether it did.
async fn write(database: &Database, epoch: i64, place: &Place, why: &str, who: &str) -> sqlx::Result<bool> {
    let text = serde_json::to_string(place).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let sql = "INSERT INTO herald_log_places (epoch, place, since, why, who) VALUES ($1, $2, {now}, $3, $4)
               ON CONFLICT (epoch) DO NOTHING";
    Ok(database.execute(sql, (epoch, text, why, who)).await? > 0)
}

async fn find(database: &Database) -> Result<Found, PlaceError> {
    let here = Place::of(database).await?;
    let Some((epoch, text)) = last(database).await? else {
        return Ok(Found { here, epoch: 0, standing: Standing::Unknown });
    };
    let standing = match serde_json::from_str::<Place>(&text) {
        Err(source) => Standing::Refused(PlaceError::BadRow { epoch, source }),
        Ok(recorded) if recorded.is(&here) => Standing::Home,
        Ok(recorded) if database.kind() == DatabaseKind::Postgres => {
            Standing::Refused(PlaceError::Elsewhere {
                recorded: Box::new(recorded),
                here: Box::new(here.clone()),
            })
        }
        Ok(recorded) => beside(database, &here, recorded).await?,
    };
    Ok(Found { here, epoch, standing })
}

/// What became of the file in which this log lived before.
async fn beside(database: &Database, here: &Place, original: Place) -> Result<Standing, PlaceError> {
    let Place::Sqlite { file, inode, .. } = &original else { return Ok(Standing::Moved(original)) };
    let (file, inode, here) = (file.clone(), *inode, here.clone());
    let id: Option<(Uuid,)> = database.fetch_optional("SELECT id FROM herald_log", ()).await?;
    let look = move || match std::fs::metadata(&file) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Original::Gone)
        }
        Err(error) => Err(error.to_string()),
        // That path leads here. It is the same file, on a device that was numbered anew; or another one, which
        // took the place of the original.
        Ok(metadata) if here.is_file(&metadata) && inode == metadata.ino() => Ok(Original::Here),
        Ok(metadata) if here.is_file(&metadata) => Ok(Original::Gone),
        Ok(_) => match (log_in(&file), id) {
            (Ok(Some(found)), Some((id,))) if found == id => Ok(Original::There),
            (Ok(_), _) => Ok(Original::Gone),
            (Err(error), _) => Err(error.to_string()),
        },
    };
    let seen = tokio::task::spawn_blocking(look).await;
    Ok(match seen.unwrap_or_else(|error| Err(error.to_string())) {
        Ok(Original::Gone) => Standing::Moved(original),
        Ok(Original::Here) => Standing::Home,
        Ok(Original::There) => Standing::Refused(PlaceError::Copied { original: Box::new(original) }),
        Err(why) => Standing::Refused(PlaceError::Unsure { original: Box::new(original), why }),
    })
}

enum Original {
    Gone,
    Here,
    There,
}

/// The id of the log in a file; none if the file is no log.
fn log_in(file: &str) -> rusqlite::Result<Option<Uuid>> {
    let is_no_log = |error: &rusqlite::Error| match error {
        rusqlite::Error::QueryReturnedNoRows => true,
        rusqlite::Error::SqliteFailure(failure, message) => {
            failure.code == rusqlite::ErrorCode::NotADatabase
                || message.as_deref().is_some_and(|message| message.starts_with("no such table"))
        }
        _ => false,
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let id = rusqlite::Connection::open_with_flags(file, flags).and_then(|connection| {
        connection.query_row("SELECT id FROM herald_log", (), |row| row.get::<_, Vec<u8>>(0))
    });
    match id {
        Ok(id) => Ok(Uuid::from_slice(&id).ok()),
        Err(error) if is_no_log(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
