//! `herald dlq export`: letters with their events, for whoever looks into them with tools of their own.

use serde::Serialize;
use store::{Json, Position};
use subscription_engine::{DeadLetter, LetterFilter};

use super::Row;
use crate::app::App;
use crate::exit::Exit;
use crate::output::{Format, list, note};

/// Letters read at a time.
const PAGE: u32 = 500;

/// A letter with its event.
#[derive(Serialize)]
pub(super) struct Exported {
    #[serde(flatten)]
    letter: Row,
    /// None where the event cannot be read.
    payload: Option<Json>,
    metadata: Option<Json>,
}

/// Letters are spread over the log, so each event is read by itself.
pub(super) async fn with_event(app: &App, row: Row, letter: &DeadLetter) -> Result<Exported, Exit> {
    let event = match app.engine.event_of(letter).await {
        Ok(events) => events.into_iter().next(),
        Err(error) => {
            let why = store::messages(&error).join(": ");
            note(&format!("the event at position {} cannot be read: {why}", row.position));
            None
        }
    };
    let (payload, metadata) = event.map(|event| (event.payload, event.metadata)).unzip();
    Ok(Exported { letter: row, payload, metadata })
}

pub(super) async fn run(app: &App, id: Option<&str>, filter: &LetterFilter) -> Result<(), Exit> {
    let mut after: Option<(String, Position)> = None;
    let mut count = 0;
    loop {
        let from = after.as_ref().map(|(id, position)| (id.as_str(), *position));
        let letters = app.engine.dead_letters(id, filter, from, PAGE).await?;
        let Some(last) = letters.last() else { break };
        after = Some((last.subscription.clone(), last.event.position));
        let mut exported = Vec::with_capacity(letters.len());
        for letter in &letters {
            exported.push(with_event(app, Row::from(letter.clone()), letter).await?);
        }
        count += exported.len();
        list(Format::Jsonl, true, "herald.dlq.export/1", &[], &exported, None, |_| Vec::new())?;
    }
    note(&format!("{count} dead letter(s) exported"));
    Ok(())
}
