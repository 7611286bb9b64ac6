//! Whether a subscription still stands where it stood: its checkpoint is compared with the log.
//!
//! A log that was restored has lost its end, and may have grown again since: all positions are there, and some of the
//! events are others. So a checkpoint keeps, beside its position, the id of the event at it. Whoever goes on from a
//! position looks first; a subscription that strayed is stopped with a reason and never moved silently.

use std::fmt;

use store::{Database, Position};
use uuid::Uuid;

use crate::engine::{Criteria, Engine, EngineError};
use crate::records::RecordError;
use crate::subscriber::{Kind, RunMode};

/// A checkpoint that does not fit the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its checkpoint does not fit the log: {stray}. {remedy}")]
pub struct BadCheckpoint {
    /// Whose checkpoint.
    pub subscription: String,
    /// What is wrong with it.
    pub stray: Stray,
    /// What to do.
    pub remedy: String,
}

/// How a checkpoint does not fit the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stray {
    /// It stands behind the last event.
    BeyondTheEnd {
        /// Where it stands.
        position: Position,
        /// Where the log ends.
        end: Position,
    },
    /// The log has another event where it stands.
    OtherEvent {
        /// Where it stands.
        position: Position,
        /// The event at which it stood; none if it stood before the first one.
        expected: Option<Uuid>,
        /// The event at which it would stand now; none if there is none.
        found: Option<Uuid>,
    },
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = |id: &Option<Uuid>| id.map_or_else(|| "no event".to_owned(), |id| format!("event {id}"));
        match self {
            Self::BeyondTheEnd { position, end } => {
                write!(f, "it stands at position {position}, and the log ends at {end}")
            }
            Self::OtherEvent { position, expected, found } => write!(
                f,
                "at position {position} it stood at {}, and the log has {} there",
                event(expected),
                event(found)
            ),
        }
    }
}

impl Engine {
    /// The checkpoints that do not fit the log, of the subscriptions that meet the criteria. Writes nothing.
    pub async fn bad_checkpoints(&self, criteria: &Criteria) -> Result<Vec<BadCheckpoint>, EngineError> {
        let strays = strays(self.store().database(), None).await?;
        let wanted = strays.into_iter().filter(|(id, group, _)| criteria.matches(id, group));
        Ok(wanted.map(|(id, _, stray)| self.bad_checkpoint(id, stray)).collect())
    }

    /// Whether a subscription stands where it stood.
    pub(crate) async fn bad_checkpoint_of(&self, id: &str) -> Result<Option<BadCheckpoint>, EngineError> {
        let stray = strays(self.store().database(), Some(id)).await?.into_iter().next();
        Ok(stray.map(|(id, _, stray)| self.bad_checkpoint(id, stray)))
    }

    fn bad_checkpoint(&self, subscription: String, stray: Stray) -> BadCheckpoint {
        let definition = self.registered(&subscription).map(|registered| &registered.definition);
        let again = match definition.map(|definition| (definition.kind, definition.run_mode)) {
            Some((Kind::Projector, _)) => {
                format!("build it anew with `herald projection replay {subscription}`")
            }
            Some((_, RunMode::FromBeginning | RunMode::Once)) => format!(
                "let it handle everything once more with `herald sub remove {subscription}`, which sets it back"
            ),
            Some((_, RunMode::FromNow)) | None => format!(
                "let it begin again at the end of the log with `herald sub remove {subscription}`, which sets it back"
            ),
        };
        let remedy = format!("The log was restored; restore a newer backup, or {again}");
        BadCheckpoint { subscription, stray, remedy }
    }
}

type Row = (String, String, Position, Option<Position>, Option<Uuid>, Option<Uuid>, Option<Position>);

/// Compares checkpoints with the log, in one snapshot: of one subscription, or of all. Their number bounds it.
async fn strays(database: &Database, id: Option<&str>) -> Result<Vec<(String, String, Stray)>, RecordError> {
    let sql = r#"
        SELECT s.id, s."group", s.position, s.position_event_at, s.position_event_id,
               (SELECT e.id FROM herald_events AS e
                 WHERE e.position <= s.position ORDER BY e.position DESC LIMIT 1),
               (SELECT MAX(position) FROM herald_events)
          FROM herald_subscriptions AS s
         WHERE s.position IS NOT NULL AND (CAST($1 AS TEXT) IS NULL OR s.id = $1)
         ORDER BY s.id"#;
    let rows: Vec<Row> = database.fetch_all(sql, (id.map(str::to_owned),)).await?;
    Ok(rows.into_iter().filter_map(compare).collect())
}

fn compare((id, group, position, written_at, expected, found, end): Row) -> Option<(String, String, Stray)> {
    let end = end.unwrap_or(Position::START);
    let stray = if position > end {
        Stray::BeyondTheEnd { position, end }
    } else if written_at == Some(position) && expected != found {
        Stray::OtherEvent { position, expected, found }
    } else {
        return None;
    };
    Some((id, group, stray))
}
