//! `herald status`: how everything gets on, on one page; with `--watch` again and again.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use subscription_engine::{Criteria, Overview, Standing, State};

use crate::app::App;
use crate::cli::findings::{self, Finding};
use crate::cli::next::Next;
use crate::cli::pace::{Stood, time_left};
use crate::cli::{Global, parse_duration};
use crate::commands::with_flags;
use crate::config::Config;
use crate::exit::Exit;
use crate::output::{Format, duration, item, json, line, stdout_is_over};
use crate::worker::Signals;

pub(crate) const HELP: &str =
    "Examples:\n  herald status\n  herald status --watch\n  herald status --watch --every 10s -o json";

/// The list is no longer than this for people; all of it stands in `sub list`.
const SHOWN: usize = 20;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Again and again, until it is interrupted
    #[arg(long)]
    watch: bool,
    /// How often
    #[arg(long, value_name = "DURATION", value_parser = parse_interval, default_value = "2s", requires = "watch")]
    every: Duration,
}

/// Nobody can read faster than this, and the database has other work.
const SHORTEST: Duration = Duration::from_millis(100);

fn parse_interval(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        every if every < SHORTEST => Err(format!("write at least {}ms", SHORTEST.as_millis())),
        every => Ok(every),
    }
}

/// Everything at one moment.
#[derive(Debug, Serialize)]
struct Page {
    head: String,
    /// Events a second since the last look.
    append_rate: Option<f64>,
    workers: Vec<WorkerLine>,
    /// What keeps the log from being worked on.
    findings: Vec<Finding>,
    subscriptions: Vec<Line>,
    dead_letters: String,
    effects_pending: String,
    effects_held: String,
}

#[derive(Debug, Serialize)]
struct WorkerLine {
    program: String,
    build: String,
    up_seconds: Option<u64>,
    subscriptions: usize,
}

#[derive(Debug, Serialize)]
struct Line {
    id: String,
    status: &'static str,
    progress: &'static str,
    stalled_because: Option<String>,
    position: Option<String>,
    lag: String,
    lag_seconds: Option<u64>,
    /// Positions a second since the last look.
    rate: Option<f64>,
    /// Until nothing waits any more, at this rate.
    seconds_left: Option<u64>,
    dead_letters: String,
    definition_changes: Vec<String>,
    /// What to type about it, if there is anything.
    next: Option<Next>,
}

pub(super) async fn run(config: &Config, global: &Global, arguments: &Arguments) -> Result<u8, Exit> {
    let app = App::open_to_look(config).await?;
    let result = if arguments.watch {
        watch(&app, global, arguments.every).await
    } else {
        let (page, _) = look(&app, None).await?;
        show(global, &page, false).map(|()| 0)
    };
    app.store.close().await;
    result
}

async fn watch(app: &App, global: &Global, every: Duration) -> Result<u8, Exit> {
    let mut signals = Signals::new(false)?;
    let mut before = None;
    loop {
        match look(app, before.as_ref()).await {
            Ok((page, now)) => {
                before = Some(now);
                show(global, &page, true)?;
            }
            // A server that restarts is watched on; what a person must mend is the end.
            Err(exit) if exit.may_heal() => {
                exit.report(global.output.is_json());
            }
            Err(exit) => return Err(exit),
        }
        if stdout_is_over() {
            return Ok(0);
        }
        tokio::select! {
            code = signals.next() => return Ok(code),
            () = tokio::time::sleep(every) => {}
        }
    }
}

async fn look(app: &App, before: Option<&Stood>) -> Result<(Page, Stood), Exit> {
    let overviews = app.engine.status(&Criteria::all()).await?;
    let workers = app.engine.live_workers().await?;
    let head = app.store.head().await?.position;
    let clock = app.store.clock().now().await?;
    let now = Stood::new(head, &overviews);
    let of_one = |overview: &Overview| {
        let subscription = &overview.subscription;
        let rate = before.and_then(|before| before.rate(overview, &now));
        Line {
            id: subscription.id.clone(),
            status: subscription.state.status().word(),
            progress: overview.standing.word(),
            stalled_because: super::sub::stalled_because(overview, clock),
            position: subscription.position.map(|position| position.to_string()),
            lag: overview.lag.to_string(),
            lag_seconds: overview.waiting_since.map(|since| clock.since(since).as_secs()),
            rate,
            seconds_left: time_left(overview, rate).map(|left| left.as_secs()),
            dead_letters: subscription.letters.open.to_string(),
            definition_changes: overview.changes.clone(),
            next: findings::of_subscription(overview, clock).map(|finding| finding.next),
        }
    };
    let sum = |of: fn(&Overview) -> i64| overviews.iter().map(of).sum::<i64>().to_string();
    let page = Page {
        head: head.to_string(),
        append_rate: before.and_then(|before| before.append_rate(&now)),
        workers: workers
            .iter()
            .map(|worker| WorkerLine {
                program: worker.program.clone(),
                build: worker.build.clone(),
                up_seconds: worker.started_ago.map(|ago| ago.as_secs()),
                subscriptions: overviews.iter().filter(|one| worker.moves(&one.subscription)).count(),
            })
            .collect(),
        findings: findings::of_store(&app.store),
        dead_letters: overviews.iter().map(|one| one.subscription.letters.open).sum::<u64>().to_string(),
        effects_pending: sum(|one| one.effects.pending),
        effects_held: sum(|one| one.effects.held),
        subscriptions: by_need(&overviews).into_iter().map(of_one).collect(),
    };
    Ok((page, now))
}

/// What needs a person first, then what lags, then the rest.
fn by_need(overviews: &[Overview]) -> Vec<&Overview> {
    let mut sorted: Vec<&Overview> = overviews.iter().collect();
    sorted.sort_by_key(|overview| {
        let need = match (&overview.standing, &overview.subscription.state) {
            (_, State::Error { .. }) => 0,
            (Standing::Stalled(_), _) => 1,
            (Standing::NoWorker, _) => 2,
            (Standing::Lagging, _) => 3,
            (Standing::Idle, _) => 4,
        };
        (need, std::cmp::Reverse(overview.lag))
    });
    sorted
}

fn show(global: &Global, page: &Page, again: bool) -> Result<(), Exit> {
    match (global.output, again) {
        (Format::Json, false) => return json("herald.status/1", page),
        (Format::Json | Format::Jsonl, _) => {
            return item(global.output, "herald.status/1", page, |_| Vec::new(), |_| String::new());
        }
        (Format::Table, true) if std::io::stdout().is_terminal() => {
            let _ = write!(std::io::stdout().lock(), "\x1b[H\x1b[2J");
        }
        _ => {}
    }
    let rate = page.append_rate.map_or_else(String::new, |rate| format!(", {rate} a second"));
    line(&format!("log            head {}{rate}", page.head));
    for finding in &page.findings {
        line(&format!("PROBLEM        {}", finding.sentence()));
        line(&format!("               → {}", finding.next));
    }
    match page.workers.as_slice() {
        [] => line(&with_flags("workers        none runs: start one with `herald worker`")),
        workers => {
            for (index, worker) in workers.iter().enumerate() {
                let up = worker.up_seconds.map_or_else(String::new, |seconds| {
                    format!(", up {}", duration(Duration::from_secs(seconds)))
                });
                let name = if index == 0 { "workers" } else { "" };
                let WorkerLine { program, build, subscriptions, .. } = worker;
                line(&format!("{name:<14} {program} {build}: {subscriptions} subscription(s){up}"));
            }
        }
    }
    let count = |word: &str| page.subscriptions.iter().filter(|one| one.progress == word).count();
    let counts: Vec<String> = ["stalled", "no worker", "lagging", "idle"]
        .into_iter()
        .filter(|word| count(word) > 0)
        .map(|word| format!("{} {word}", count(word)))
        .collect();
    let none = page.subscriptions.is_empty();
    line(&format!("subscriptions  {}", if none { "none".to_owned() } else { counts.join(", ") }));
    if page.dead_letters != "0" {
        line(&with_flags(&format!("dead letters   {}: see `herald dlq list`", page.dead_letters)));
    }
    if page.effects_pending != "0" || page.effects_held != "0" {
        line(&format!("effects        {} pending, {} held", page.effects_pending, page.effects_held));
    }
    for one in page.subscriptions.iter().take(SHOWN) {
        line(&of_subscription(one));
        // One line for those that only want a worker: it stands above.
        if let Some(next) = one.next.as_ref().filter(|_| one.progress == "stalled") {
            line(&format!("  → {next}"));
        }
    }
    if let Some(more) = page.subscriptions.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        line(&with_flags(&format!("and {more} more: see `herald sub list`")));
    }
    if again && !std::io::stdout().is_terminal() {
        line("");
    }
    Ok(())
}

fn of_subscription(one: &Line) -> String {
    let waits = one
        .lag_seconds
        .map_or_else(String::new, |seconds| format!(" ({})", duration(Duration::from_secs(seconds))));
    let rate = one.rate.map_or_else(String::new, |rate| format!(", {rate} a second"));
    let left = one
        .seconds_left
        .map_or_else(String::new, |seconds| format!(", {} left", duration(Duration::from_secs(seconds))));
    let why = one.stalled_because.as_ref().map_or_else(String::new, |why| format!(": {why}"));
    let changed = if one.definition_changes.is_empty() { "" } else { ", definition changed" };
    format!(
        "  {:<28} {:<9} {:<10} lag {}{waits}{rate}{left}{changed}{why}",
        one.id, one.status, one.progress, one.lag
    )
}
