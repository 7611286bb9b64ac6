//! What goes to stdout: the data, in the form asked for. Talk goes to stderr.

use std::io::Write;

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::exit::Exit;

/// The form of the data on stdout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns, for people.
    Table,
    /// One record a line, fields separated by tabs.
    Plain,
    /// One JSON document.
    Json,
    /// One JSON object a line.
    Jsonl,
}

impl Format {
    pub(crate) fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }
}

/// Writes a line to stdout. Whoever closed the pipe has seen enough: the program ends quietly.
pub(crate) fn line(text: &str) {
    if writeln!(std::io::stdout().lock(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// Writes data that is one thing.
pub(crate) fn json(schema: &str, data: &impl Serialize) -> Result<(), Exit> {
    let document = serde_json::json!({ "schema": schema, "data": data, "next": null });
    line(&document.to_string());
    Ok(())
}

/// Writes a list: columns for people, objects for programs.
pub(crate) fn list<T: Serialize>(
    format: Format,
    no_header: bool,
    schema: &str,
    header: &[&str],
    items: &[T],
    columns: impl Fn(&T) -> Vec<String>,
) -> Result<(), Exit> {
    match format {
        Format::Json => return json(schema, &items),
        Format::Jsonl => {
            for item in items {
                line(&serde_json::to_string(item)?);
            }
        }
        Format::Plain => {
            if !no_header {
                line(&header.join("\t").to_lowercase());
            }
            for item in items {
                line(&columns(item).join("\t"));
            }
        }
        Format::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING);
            if !no_header {
                table.set_header(header.to_vec());
            }
            for item in items {
                table.add_row(columns(item));
            }
            for column in table.column_iter_mut() {
                column.set_padding((0, 2));
            }
            for text in table.lines() {
                line(text.trim_end());
            }
        }
    }
    Ok(())
}

/// A duration as people say it: `2m 4s`, no fractions.
pub(crate) fn duration(duration: std::time::Duration) -> String {
    let seconds = std::time::Duration::from_secs(duration.as_secs());
    humantime::format_duration(seconds).to_string()
}

/// An instant as people read it: to the second.
pub(crate) fn moment(instant: store::Timestamp) -> String {
    let micros = instant.as_micros();
    store::Timestamp::from_micros(micros - micros.rem_euclid(1_000_000)).to_string()
}
