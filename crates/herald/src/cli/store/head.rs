//! `herald store head`: how far the log may be read, and who holds that back.

use ::store::{HeadReport, Holder, HolderKind};
use serde::Serialize;

use crate::app::App;
use crate::cli::Global;
use crate::config::Config;
use crate::exit::Exit;
use crate::output::{duration, json, line, list, note};

/// So much of a statement is shown in a column; JSON has it whole.
const QUERY_CHARACTERS: usize = 60;

pub(super) async fn run(config: &Config, global: &Global) -> Result<(), Exit> {
    let app = App::open_to_look(config).await?;
    let report = app.store.explain_head().await?;
    let is_sqlite = report.published.is_none();
    app.store.close().await;
    if global.output.is_json() {
        return json("herald.store.head/1", &Document::from(&report));
    }
    let published = report.published.map_or_else(
        || "-".to_owned(),
        |published| format!("{}, moved {} ago", published.position, duration(published.age)),
    );
    let fields = [
        ("safe head", report.position.to_string()),
        ("end of log", report.end.to_string()),
        ("published", published),
        ("dead", format!("{} position(s) in {} hole(s)", report.dead_positions, report.dead_ranges)),
        ("waiting", format!("{} event(s)", report.events_waiting)),
    ];
    for (name, value) in fields {
        line(&format!("{name:<12}{value}"));
    }
    if !report.holders.is_empty() {
        line("");
        let header =
            ["HELD BACK BY", "USER", "APPLICATION", "CLIENT", "OPEN FOR", "STATE", "QUERY", "TO GIVE IT UP"];
        let rows: Vec<Row> = report.holders.iter().map(Row::from).collect();
        list(global.output, global.no_header, "herald.store.head/1", &header, &rows, None, Row::columns)?;
    }
    note(&advice(&report, is_sqlite));
    Ok(())
}

/// What the numbers mean, in a sentence or two.
fn advice(report: &HeadReport, is_sqlite: bool) -> String {
    if is_sqlite {
        return "Everything that is committed can be read. Who holds the write lock of an SQLite file cannot be known."
            .to_owned();
    }
    if report.is_standby {
        return "This is a standby: it can be read up to what is published, and on from there as long as there is no \
                hole. Who holds the head back, only the primary knows."
            .to_owned();
    }
    let passing = match report.passing {
        0 => String::new(),
        1 => " One append is under way, which is no cause for concern: it holds the lock for a moment."
            .to_owned(),
        count => format!(
            " {count} appends are under way, which is no cause for concern: each holds the lock for a moment."
        ),
    };
    let is_hidden = |holder: &Holder| matches!(holder.kind, HolderKind::Session { state: None, .. });
    let hidden = if report.holders.iter().any(is_hidden) {
        " What is not shown of a session needs the role pg_read_all_stats."
    } else {
        ""
    };
    let now = match (report.readers_wait(), report.holders.is_empty()) {
        (false, true) => "Nothing waits.",
        (false, false) => {
            "Nothing waits yet; what is appended from now on will wait until that is committed or given up."
        }
        (true, false) => "Readers wait until that is committed or given up.",
        (true, true) => "Readers wait for appends that are just ending; look again.",
    };
    format!("{now}{passing}{hidden}")
}

#[derive(Serialize)]
struct Document {
    head: String,
    end: String,
    events_waiting: String,
    readers_wait: bool,
    published: Option<Published>,
    dead_holes: String,
    dead_positions: String,
    is_standby: bool,
    held_back_by: Vec<Row>,
    appends_passing: usize,
}

#[derive(Serialize)]
struct Published {
    position: String,
    age_ms: String,
}

#[derive(Default, Serialize)]
struct Row {
    kind: &'static str,
    pid: Option<i32>,
    gid: Option<String>,
    user: Option<String>,
    application: Option<String>,
    client: Option<String>,
    age_ms: Option<String>,
    #[serde(skip)]
    age: Option<std::time::Duration>,
    state: Option<String>,
    query: Option<String>,
    to_give_it_up: String,
}

impl From<&HeadReport> for Document {
    fn from(report: &HeadReport) -> Self {
        Self {
            head: report.position.to_string(),
            end: report.end.to_string(),
            events_waiting: report.events_waiting.to_string(),
            readers_wait: report.readers_wait(),
            published: report.published.map(|published| Published {
                position: published.position.to_string(),
                age_ms: published.age.as_millis().to_string(),
            }),
            dead_holes: report.dead_ranges.to_string(),
            dead_positions: report.dead_positions.to_string(),
            is_standby: report.is_standby,
            held_back_by: report.holders.iter().map(Row::from).collect(),
            appends_passing: report.passing,
        }
    }
}

impl From<&Holder> for Row {
    fn from(holder: &Holder) -> Self {
        let common = Self {
            age_ms: holder.age.map(|age| age.as_millis().to_string()),
            age: holder.age,
            to_give_it_up: holder.ending(),
            ..Self::default()
        };
        match holder.kind.clone() {
            HolderKind::Session { pid, application, user, client, state, query } => {
                Self { kind: "session", pid: Some(pid), application, user, client, state, query, ..common }
            }
            HolderKind::Prepared { gid, owner } => {
                Self { kind: "prepared", gid: Some(gid), user: Some(owner), ..common }
            }
        }
    }
}

impl Row {
    fn columns(&self) -> Vec<String> {
        let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let who = match (self.pid, &self.gid) {
            (Some(pid), _) => format!("session {pid}"),
            (None, gid) => format!("prepared {}", or_none(gid)),
        };
        // In one line, however it was written.
        let query = self.query.as_ref().map(|query| query.split_whitespace().collect::<Vec<_>>().join(" "));
        let is_long = query.as_ref().is_some_and(|query| query.chars().count() > QUERY_CHARACTERS);
        let shortened = |query: String| query.chars().take(QUERY_CHARACTERS).chain(['…']).collect();
        let query = if is_long { query.map(shortened) } else { query };
        vec![
            who,
            or_none(&self.user),
            or_none(&self.application),
            or_none(&self.client),
            self.age.map_or_else(|| "-".to_owned(), duration),
            or_none(&self.state),
            or_none(&query),
            self.to_give_it_up.clone(),
        ]
    }
}
