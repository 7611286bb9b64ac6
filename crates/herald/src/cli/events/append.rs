//! `herald events append`: events by hand, under the same rules as from a program.

use std::io::Read;

use ::store::{
    ExpectedVersion, Json, MAX_APPEND_EVENTS, MAX_METADATA_BYTES, MAX_PAYLOAD_BYTES, NewEvent, StreamName,
    Version,
};
use clap::Args;
use serde::Deserialize;
use uuid::Uuid;

use crate::app::App;
use crate::cli::Global;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line, note};

/// Payloads and metadata of the largest append, and room for what stands around them.
const MAX_INPUT_BYTES: u64 = ((MAX_PAYLOAD_BYTES + MAX_METADATA_BYTES + 1024) * MAX_APPEND_EVENTS) as u64;

#[derive(Debug, Args)]
pub(crate) struct Append {
    /// The stream
    stream: StreamName,
    /// The event's type, such as Acme.Notifications:UserWasNotified
    #[arg(long = "type", value_name = "TYPE", required_unless_present = "lines", conflicts_with = "lines")]
    event_type: Option<String>,
    /// The payload: JSON, or @FILE, or - for stdin; kept byte for byte
    #[arg(
        long,
        value_name = "JSON",
        required_unless_present = "lines",
        conflicts_with = "lines",
        allow_negative_numbers = true
    )]
    payload: Option<String>,
    /// The metadata: a JSON object, or @FILE
    #[arg(long, value_name = "JSON", conflicts_with = "lines")]
    metadata: Option<String>,
    /// The event's id: give one, and the command is safe to repeat
    #[arg(long, value_name = "UUID", conflicts_with = "lines")]
    id: Option<Uuid>,
    /// What the event belongs to
    #[arg(long, value_name = "TEXT", conflicts_with = "lines")]
    correlation_id: Option<String>,
    /// The id of the event that brought it about
    #[arg(long, value_name = "UUID", conflicts_with = "lines")]
    causation_id: Option<Uuid>,
    /// Several events in one append: a file of JSON lines, or - for stdin, each with type, payload and, if
    /// wanted, metadata, id, correlation_id, causation_id
    #[arg(long, value_name = "FILE")]
    lines: Option<String>,
    /// What must hold of the stream: any, none (no stream), exists, or the version of its last event
    #[arg(long, value_name = "VERSION", default_value = "any", value_parser = parse_expected, allow_negative_numbers = true)]
    expected: ExpectedVersion,
}

/// An event as a line of JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(rename = "type")]
    event_type: String,
    payload: Json,
    metadata: Option<Json>,
    id: Option<Uuid>,
    correlation_id: Option<String>,
    causation_id: Option<Uuid>,
}

fn parse_expected(text: &str) -> Result<ExpectedVersion, String> {
    match text {
        "any" => Ok(ExpectedVersion::Any),
        "none" => Ok(ExpectedVersion::NoStream),
        "exists" => Ok(ExpectedVersion::StreamExists),
        _ => match text.parse::<i64>() {
            Ok(version) if version >= 0 => Ok(ExpectedVersion::Exactly(Version(version))),
            _ => Err("write any, none, exists, or a version from 0 on".to_owned()),
        },
    }
}

pub(super) async fn run(config: &Config, global: &Global, arguments: Append) -> Result<(), Exit> {
    // Everything that can be wrong with the words is found before a store is opened, or made.
    let Append { stream, expected, .. } = &arguments;
    let (stream, expected) = (stream.clone(), *expected);
    let events = events(arguments)?;
    let count = events.len();
    if count == 0 {
        return Err(usage("there is no event in it".to_owned()));
    }
    let app = App::open_or_set_up(config).await?;
    let result = app.store.append(&stream, expected, events).await;
    app.store.close().await;
    let appended = result.map_err(|error| match error {
        ::store::AppendError::WrongVersion { .. } | ::store::AppendError::IdReused { .. } => {
            Exit::new(Code::Conflict, error.to_string())
        }
        ::store::AppendError::Invalid { .. } => Exit::new(Code::Usage, ::store::messages(&error).join(": ")),
        error => Exit::from(error),
    })?;
    let position = appended.position.map(|position| position.to_string());
    let version = appended.version.map(|version| version.to_string());
    if global.output.is_json() {
        let data = serde_json::json!({
            "stream": stream, "events": count.to_string(), "position": position, "version": version,
            "replayed": appended.replayed,
        });
        return json("herald.events.append/1", &data);
    }
    let what = if count == 1 { "1 event".to_owned() } else { format!("{count} events") };
    let what = if appended.replayed {
        format!("{what} had been appended before")
    } else {
        format!("Appended {what}")
    };
    let at = position.unwrap_or_default();
    line(&format!("{what}: {stream} is at version {}, position {at}.", version.unwrap_or_default()));
    note(&format!("next:  herald events show {at}"));
    Ok(())
}

fn events(arguments: Append) -> Result<Vec<NewEvent>, Exit> {
    if let Some(file) = &arguments.lines {
        return lines(&read(file)?);
    }
    let payload = arguments.payload.unwrap_or_default();
    let payload = if payload == "-" { "@-".to_owned() } else { payload };
    let payload = text_or_file(payload)?;
    let mut event = NewEvent::new(arguments.event_type.unwrap_or_default(), parse("payload", payload)?);
    if let Some(metadata) = arguments.metadata {
        event.metadata = parse("metadata", text_or_file(metadata)?)?;
    }
    event.id = arguments.id.unwrap_or(event.id);
    event.correlation_id = arguments.correlation_id;
    event.causation_id = arguments.causation_id;
    Ok(vec![event])
}

fn lines(text: &str) -> Result<Vec<NewEvent>, Exit> {
    let numbered = text.lines().zip(1..).filter(|(text, _)| !text.trim().is_empty());
    numbered
        .map(|(text, number)| {
            let line: Line =
                serde_json::from_str(text).map_err(|error| usage(format!("line {number}: {error}")))?;
            let mut event = NewEvent::new(line.event_type, line.payload);
            event.metadata = line.metadata.unwrap_or(event.metadata);
            event.id = line.id.unwrap_or(event.id);
            event.correlation_id = line.correlation_id;
            event.causation_id = line.causation_id;
            Ok(event)
        })
        .collect()
}

/// JSON out of an argument.
pub(in crate::cli) fn parse(what: &str, text: String) -> Result<Json, Exit> {
    Json::parse(text)
        .map_err(|error| usage(format!("the {what} is {}", ::store::messages(&error).join(": "))))
}

fn usage(message: String) -> Exit {
    Exit::new(Code::Usage, message)
}

/// The text itself, or what stands in the file that it names with an @.
pub(in crate::cli) fn text_or_file(text: String) -> Result<String, Exit> {
    match text.strip_prefix('@') {
        Some(file) => read(file).map(|text| text.trim_end_matches(['\r', '\n']).to_owned()),
        None => Ok(text),
    }
}

/// More than an append may have is not even read.
fn read(file: &str) -> Result<String, Exit> {
    let mut text = String::new();
    let result = match file {
        "-" => std::io::stdin().lock().take(MAX_INPUT_BYTES + 1).read_to_string(&mut text),
        file => std::fs::File::open(file)
            .and_then(|file| file.take(MAX_INPUT_BYTES + 1).read_to_string(&mut text)),
    };
    match result {
        Ok(length) if length as u64 > MAX_INPUT_BYTES => {
            Err(usage(format!("{file} has more than {MAX_INPUT_BYTES} bytes, more than one append may have")))
        }
        Ok(_) => Ok(text),
        Err(error) => Err(usage(format!("could not read {file}: {error}"))),
    }
}
