//! What goes to stdout: the data, in the form asked for. Talk goes to stderr.

use std::borrow::Cow;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::commands::with_flags;
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
    /// One JSON object a line, each with its schema.
    Jsonl,
}

impl Format {
    pub(crate) fn is_json(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }
}

/// Set when stdout took something no more, though somebody was there to read it.
static STDOUT_FAILED: AtomicBool = AtomicBool::new(false);
/// See [`write_as`].
static ONE_A_LINE: AtomicBool = AtomicBool::new(false);
/// Set when whoever read stdout has closed it.
static STDOUT_CLOSED: AtomicBool = AtomicBool::new(false);

/// Writes a line of text to stdout, with nothing in it that a terminal would obey.
pub(crate) fn line(text: &str) {
    write_line(&visible(text));
}

/// Writes a line to stdout. Whoever closed the pipe has seen enough: what was asked for is done all the same.
fn write_line(text: &str) {
    if let Err(error) = writeln!(std::io::stdout().lock(), "{text}") {
        let flag = match error.kind() {
            std::io::ErrorKind::BrokenPipe => &STDOUT_CLOSED,
            _ => &STDOUT_FAILED,
        };
        flag.store(true, Ordering::Relaxed);
    }
}

/// Whether there is nobody left to write for, or no way: what goes on for ever ends here.
pub(crate) fn stdout_is_over() -> bool {
    STDOUT_CLOSED.load(Ordering::Relaxed) || stdout_failed()
}

/// Whether data was lost on its way out.
pub(crate) fn stdout_failed() -> bool {
    STDOUT_FAILED.load(Ordering::Relaxed)
}

/// Says something to the person, on stderr. If nobody can hear it, nothing follows from that.
pub(crate) fn note(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", visible(&with_flags(text)));
}

/// The text with escapes in place of what a terminal would obey: control characters, and marks that turn the
/// direction of writing. What other people wrote must not move the cursor or forge a line.
pub(crate) fn visible(text: &str) -> Cow<'_, str> {
    let is_obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| if is_obeyed(c) { c.escape_default().to_string() } else { c.to_string() };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// Writes data that is one thing, or the few that a command was about.
pub(crate) fn json(schema: &str, data: &impl Serialize) -> Result<(), Exit> {
    if !ONE_A_LINE.load(Ordering::Relaxed) {
        return json_page(schema, data, None);
    }
    let text = serde_json::to_string(data)?;
    match serde_json::from_str::<Vec<&RawValue>>(&text) {
        Ok(items) => items.iter().try_for_each(|item| json_line(schema, item)),
        Err(_) => json_line(schema, data),
    }
}

/// Set once, before a command runs: JSON goes out as an object a line.
pub(crate) fn write_as(format: Format) {
    ONE_A_LINE.store(format == Format::Jsonl, Ordering::Relaxed);
}

/// Writes an object on a line of its own, which says by itself what it is. It is put together as text: a tree of
/// values in between would rewrite what the log keeps byte for byte.
fn json_line(schema: &str, item: &impl Serialize) -> Result<(), Exit> {
    let schema = serde_json::to_string(schema)?;
    let item = serde_json::to_string(item)?;
    write_line(&on_one_line(&match item.strip_prefix('{') {
        Some("}") => format!("{{\"schema\":{schema}}}"),
        Some(fields) => format!("{{\"schema\":{schema},{fields}"),
        None => format!("{{\"schema\":{schema},\"data\":{item}}}"),
    }));
    Ok(())
}

/// Writes a page of data, with where the next one begins.
fn json_page(schema: &str, data: &impl Serialize, next: Option<&str>) -> Result<(), Exit> {
    write_line(&serde_json::to_string(&Document { schema, data, next })?);
    Ok(())
}

/// Written as it comes: a tree of values in between would rewrite what the log keeps byte for byte.
#[derive(Serialize)]
struct Document<'a, T> {
    schema: &'a str,
    data: &'a T,
    next: Option<&'a str>,
}

/// JSON that was kept as it was written, on one line: a line break or a tab can only be space between two tokens.
pub(crate) fn on_one_line(json: &str) -> String {
    json.replace(['\n', '\r', '\t'], " ")
}

/// The first line of `plain` output.
pub(crate) fn plain_header(header: &[&str]) {
    write_line(&header.join("\t").to_lowercase());
}

/// The fields of a record, separated by tabs.
fn plain(columns: &[String]) -> String {
    columns.iter().map(|text| visible(text)).collect::<Vec<_>>().join("\t")
}

/// Writes one of many things that come in their own time: one line, in any form. `for_people` is the line of a table.
pub(crate) fn item<T: Serialize>(
    format: Format,
    schema: &str,
    item: &T,
    columns: impl Fn(&T) -> Vec<String>,
    for_people: impl Fn(&T) -> String,
) -> Result<(), Exit> {
    match format {
        Format::Json => {
            write_line(&on_one_line(&serde_json::to_string(&Document { schema, data: item, next: None })?));
        }
        Format::Jsonl => json_line(schema, item)?,
        Format::Plain => write_line(&plain(&columns(item))),
        Format::Table => line(&for_people(item)),
    }
    Ok(())
}

/// Writes a list: columns for people, objects for programs, and where the next page begins.
pub(crate) fn list<T: Serialize>(
    format: Format,
    no_header: bool,
    schema: &str,
    header: &[&str],
    items: &[T],
    next: Option<&str>,
    columns: impl Fn(&T) -> Vec<String>,
) -> Result<(), Exit> {
    match format {
        Format::Json => return json_page(schema, &items, next),
        Format::Jsonl => {
            for item in items {
                json_line(schema, item)?;
            }
        }
        Format::Plain => {
            if !no_header {
                plain_header(header);
            }
            for item in items {
                write_line(&plain(&columns(item)));
            }
        }
        Format::Table => {
            let mut table = Table::new();
            table.load_style(presets::NOTHING);
            if !no_header {
                table.set_header(header.to_vec());
            }
            for item in items {
                table
                    .add_row(columns(item).iter().map(|text| visible(text).into_owned()).collect::<Vec<_>>());
            }
            for column in table.column_iter_mut() {
                column.set_padding((0, 2));
            }
            for text in table.lines() {
                write_line(text.trim_end());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        assert_eq!(visible("plain ü 💌"), "plain ü 💌");
        assert_eq!(visible("a\u{1b}[2Jb\nc\td\u{9b}\u{202e}"), r"a\u{1b}[2Jb\nc\td\u{9b}\u{202e}");
    }
}
