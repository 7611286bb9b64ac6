//! `herald sub refresh`: what the code says is brought to the rows, and a changed definition is accepted.

use clap::Args;

use super::{Steering, known, told};
use crate::app::App;
use crate::cli::Global;
use crate::exit::Exit;

pub(super) const HELP: &str = "A definition that has changed without a new id is reported by `sub list`, `sub show`, `status` and `check`. What was made of \
    the events so far stays as it is: build it anew with `sub replay`, or say that it is right with --accept-definition.\n\n\
    Examples:\n  herald sub refresh inbox_1\n  herald sub refresh inbox_1 --accept-definition --reason \"only wants more\"\n  \
    herald sub refresh --all --reason \"moved to another group\"";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    which: Steering,
    /// What the code makes of events now is right for what was made of them before
    #[arg(long)]
    accept_definition: bool,
}

pub(super) async fn run(app: &App, global: &Global, arguments: &Arguments, reason: &str) -> Result<(), Exit> {
    let criteria = known(app, arguments.which.criteria()).await?;
    let report = app.engine.refresh(&criteria, arguments.accept_definition, reason).await?;
    told(global, "refresh", &report, "nothing to refresh")
}
