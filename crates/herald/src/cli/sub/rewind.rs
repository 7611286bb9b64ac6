//! `herald sub rewind`: putting a projector somewhere else in the log.

use clap::Args;
use store::Position;
use subscription_engine::{Criteria, Placing};

use super::told;
use crate::app::App;
use crate::cli::confirm::confirm;
use crate::cli::{Global, known, reason_given};
use crate::exit::Exit;

pub(crate) const HELP: &str = "Set back, it handles the events after that position once more, on top of what it has made of \
    them already, and neither plans effects nor sets timers nor emits because of them; to begin with empty tables, use \
    `herald projection replay`. Moved forward, it never handles the events \
    in between, and that needs a reason.\n\n\
    Examples:\n  herald sub rewind inbox_1 1200 --yes\n  herald sub rewind inbox_1 1250 --reason \"rows were repaired by hand\"";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Its id
    id: String,
    /// Where it is to stand: what comes after this position is handled next
    #[arg(value_parser = clap::value_parser!(i64).range(0..))]
    position: i64,
}

pub(super) async fn run(app: &App, global: &Global, arguments: &Arguments, reason: &str) -> Result<(), Exit> {
    let Arguments { id, position } = arguments;
    let criteria = known(app, Criteria::id(id)).await?;
    let to = Position(*position);
    // One that is not discovered yet is shown as well: at the start.
    let mut placing = Placing { seen_at: Position::START, to };
    if let Some(overview) = app.engine.status(&criteria).await?.first() {
        placing.seen_at = overview.subscription.read_from();
        let stands = placing.seen_at.0;
        if *position > stands {
            reason_given(global, "passed over")?;
            let events = position - stands;
            confirm(
                global,
                &format!(
                    "{id} stands at position {stands}; moving it forward to {position} leaves up to {events} event(s) unhandled"
                ),
            )?;
        } else {
            let events = stands - position;
            confirm(
                global,
                &format!(
                    "{id} stands at position {stands}; setting it back to {position} has it handle up to {events} event(s) once more"
                ),
            )?;
        }
    }
    let outcome = app.engine.rewind(id, placing, reason).await?;
    told(global, "rewind", &vec![(id.clone(), outcome)], "nothing to put elsewhere")
}
