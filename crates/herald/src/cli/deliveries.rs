//! `herald deliveries`: what was sent to whom, and what came of it.

use ::store::{Fault, Position, Timestamp};
use clap::Args;
use notification_subscribers::{DeliveryFilter, DeliveryLog, DeliveryRow, DeliveryStatus};
use serde::Serialize;
use uuid::Uuid;

use crate::app::App;
use crate::cli::{Global, parse_time};
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{list, moment, note};

pub(crate) const HELP: &str = "Examples:\n  herald deliveries --to test@example.com\n  \
    herald deliveries --status failed --since 2026-01-01T00:00:00Z\n  herald deliveries --tracking 8f3b… -o json";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Only to this address, conversation of Slack or webhook
    #[arg(long, value_name = "ADDRESS")]
    to: Option<String>,
    /// Only of the work that is tracked by this id
    #[arg(long, value_name = "ID")]
    tracking: Option<String>,
    /// Only in this status: requested, sending, deferred, in-doubt, sent or failed
    #[arg(long)]
    status: Option<DeliveryStatus>,
    /// Only those asked for at this time or later
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    since: Option<Timestamp>,
    /// Only those asked for earlier than this
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    before: Option<Timestamp>,
    /// Only those after this one in the list, which the JSON of the last page names as `next`
    #[arg(long, value_name = "POSITION")]
    after: Option<i64>,
    /// So many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

#[derive(Serialize)]
struct Row {
    operation: Uuid,
    kind: String,
    to: String,
    subject: String,
    status: String,
    attempts: String,
    tracking: Option<String>,
    detail: String,
    requested_at: Timestamp,
    changed_at: Timestamp,
    position: String,
}

impl From<DeliveryRow> for Row {
    fn from(row: DeliveryRow) -> Self {
        Self {
            operation: row.operation_id,
            kind: row.kind,
            to: row.recipient,
            subject: row.subject,
            status: row.status,
            attempts: row.attempts.to_string(),
            tracking: row.tracking_id,
            detail: row.detail,
            requested_at: row.requested_at,
            changed_at: row.changed_at,
            position: row.position.0.to_string(),
        }
    }
}

pub(crate) async fn run(config: &Config, global: &Global, arguments: Arguments) -> Result<(), Exit> {
    let Arguments { to, tracking, status, since, before, after, limit } = arguments;
    let filter = DeliveryFilter { to, tracking_id: tracking, status, since, before };
    let app = App::open_to_look(config).await?;
    let found = DeliveryLog::new(app.store.clone()).find(&filter, after.map(Position), limit).await;
    app.store.close().await;
    let found = found.map_err(|error| match Fault::of(&error) {
        Fault::Other => {
            let why = ::store::messages(&error).join(": ");
            Exit::new(Code::Failed, format!("the log of deliveries is not there: {why}"))
                .with_hint("`herald store setup` or a worker makes it")
        }
        _ => error.into(),
    })?;
    let rows: Vec<Row> = found.into_iter().map(Row::from).collect();
    let is_full = rows.len() == usize::try_from(limit).unwrap_or(usize::MAX);
    let next = rows.last().filter(|_| is_full).map(|row| row.position.clone());
    let header = ["REQUESTED", "KIND", "TO", "SUBJECT", "STATUS", "ATTEMPTS", "TRACKING", "NOTE"];
    let schema = "herald.deliveries.list/1";
    list(global.output, global.no_header, schema, &header, &rows, next.as_deref(), |row| {
        vec![
            moment(row.requested_at),
            row.kind.clone(),
            row.to.clone(),
            row.subject.clone(),
            row.status.clone(),
            row.attempts.clone(),
            row.tracking.clone().unwrap_or_default(),
            row.detail.clone(),
        ]
    })?;
    if let (Some(next), false) = (next, global.output.is_json()) {
        note(&format!("There may be more: add --after {next}"));
    }
    Ok(())
}
