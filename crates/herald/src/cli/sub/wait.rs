//! `herald sub wait`: read your writes, from a script.

use std::time::Duration;

use clap::Args;
use serde::Serialize;
use store::Position;
use subscription_engine::{Standing, Waited};

use crate::app::App;
use crate::cli::{Global, parse_duration};
use crate::exit::{Code, Exit};
use crate::output::{duration, json, line, note};

pub(crate) const HELP: &str = "Exit code 0 once it has, 8 when the time is up, 5 when it is stopped and will not get there by itself.\n\n\
    Examples:\n  herald sub wait inbox_1\n  herald sub wait inbox_1 --position 1203 --timeout 5s";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Its id
    id: String,
    /// Up to this position
    #[arg(long, value_name = "POSITION", conflicts_with = "head", value_parser = clap::value_parser!(i64).range(0..))]
    position: Option<i64>,
    /// Up to the head as it is now; so it is if nothing is said
    #[arg(long)]
    head: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, default_value = "30s")]
    timeout: Duration,
}

#[derive(Serialize)]
struct Told<'a> {
    id: &'a str,
    /// Up to where was waited for.
    wanted: String,
    position: String,
    /// Events up to there that are dead letters, not handled.
    set_aside: String,
}

pub(super) async fn run(app: &App, global: &Global, arguments: &Arguments) -> Result<(), Exit> {
    let Arguments { id, timeout, .. } = arguments;
    let wanted = match arguments.position.filter(|_| !arguments.head) {
        Some(position) => Position(position),
        None => app.store.head().await?.position,
    };
    match app.engine.wait_for(id, wanted, *timeout).await? {
        Waited::Passed { position, set_aside } => {
            if set_aside > 0 {
                note(&format!(
                    "{set_aside} event(s) up to there are dead letters, not handled: see `herald dlq list {id}`"
                ));
            }
            if global.output.is_json() {
                let (wanted, position) = (wanted.to_string(), position.max(wanted).to_string());
                let told = Told { id, wanted, position, set_aside: set_aside.to_string() };
                return json("herald.sub.wait/1", &told);
            }
            line(&match set_aside {
                0 => format!("{id} has handled everything up to position {wanted}"),
                _ => format!(
                    "{id} has passed position {wanted}, but {set_aside} event(s) up to there are not handled"
                ),
            });
            Ok(())
        }
        Waited::TimedOut { position, standing } => {
            let why = match standing {
                Standing::Idle => String::new(),
                standing => format!(" ({standing})"),
            };
            let message = format!(
                "{id} stands at position {position}, not at {wanted}, after {}{why}",
                duration(*timeout)
            );
            Err(Exit::new(Code::TimedOut, message).with_hint(format!("see `herald sub show {id}`")))
        }
        Waited::Stopped { position, why } => {
            let message =
                format!("{id} stands at position {position} and will not get to {wanted} by itself: {why}");
            Err(Exit::new(Code::Conflict, message).with_hint(format!("see `herald sub show {id}`")))
        }
        Waited::Unknown => Err(Exit::new(Code::NotFound, format!("there is no subscription {id:?}"))
            .with_hint("see `herald sub list`")),
    }
}
