//! `herald events show --raw`: a row of the log as it is stored, and what is wrong with it.

use ::store::{Position, RawEvent};
use serde::Serialize;

use super::missing;
use crate::app::App;
use crate::cli::Global;
use crate::exit::Exit;
use crate::output::{json, line, on_one_line};

#[derive(Serialize)]
struct Column {
    column: &'static str,
    value: Option<String>,
    fault: Option<String>,
}

#[derive(Serialize)]
struct Shown {
    position: String,
    columns: Vec<Column>,
}

/// Shows the row at a position, which was named so.
pub(super) async fn show(app: &App, global: &Global, position: Position, named: &str) -> Result<(), Exit> {
    let row = app.store.raw_event(position).await?.ok_or_else(|| missing(named))?;
    let RawEvent { columns, .. } = row;
    if global.output.is_json() {
        let columns = columns
            .into_iter()
            .map(|column| Column { column: column.name, value: column.value, fault: column.fault })
            .collect();
        return json("herald.events.raw/1", &Shown { position: position.to_string(), columns });
    }
    for column in columns {
        let value = column.value.map_or_else(|| "NULL".to_owned(), |value| on_one_line(&value));
        line(&format!("{:<16}{value}", column.name));
        if let Some(fault) = column.fault {
            line(&format!("{:<16}^ cannot be read: {fault}", ""));
        }
    }
    Ok(())
}
