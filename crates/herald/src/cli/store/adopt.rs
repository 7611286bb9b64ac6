//! `herald store adopt`: a person says that a log lives here now.

use ::store::StoreError;

use crate::app::App;
use crate::cli::Global;
use crate::cli::confirm::confirm;
use crate::config::Config;
use crate::exit::Exit;
use crate::output::{json, line, note};

pub(super) const HELP: &str = "An event store remembers where it lives, so that a copy does not send what the original sends. \
    After a restore to another server, after pg_upgrade, or for a copy that is meant to live on, say here that this \
    is its home now. Adopt a copy only if its original does not run any more, or if what the copy sends goes nowhere: \
    with two of them running, each mail is sent twice.\n\n\
    Examples:\n  herald store adopt --reason \"restored after the disk failed\"\n  herald store adopt --yes";

pub(super) async fn run(config: &Config, global: &Global) -> Result<(), Exit> {
    let App { store, .. } = App::open_to_look(config).await?;
    let is_elsewhere = store.refusals().iter().any(|refusal| matches!(refusal, StoreError::Place(_)));
    if is_elsewhere && let Some(place) = store.place() {
        confirm(
            global,
            &format!(
                "adopting takes {} for the home of this event store; if its original still runs, mails and messages \
                 are sent twice",
                place.here
            ),
        )?;
    }
    let why = global.reason.clone().unwrap_or_else(|| format!("adopted by {}", config.who));
    let place = store.adopt(&why, &config.who).await?;
    store.close().await;
    let epoch = place.epoch.map(|epoch| epoch.to_string()).unwrap_or_default();
    if global.output.is_json() {
        let data = serde_json::json!({
            "adopted": is_elsewhere, "epoch": epoch, "place": place.here, "was": place.moved_from
        });
        return json("herald.store.adopt/1", &data);
    }
    if is_elsewhere {
        line(&format!("Adopted: the event store lives in {} now, epoch {epoch}.", place.here));
        note("next: `herald store verify` compares the log with its checkpoints; then start the worker");
    } else {
        line(&format!("Nothing to adopt: the event store is at home in {}, epoch {epoch}.", place.here));
    }
    Ok(())
}
