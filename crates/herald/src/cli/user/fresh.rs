//! Whether an inbox shows everything that was sent: whoever reads it is warned if it does not.

use std::time::Duration;

use notification_subscribers::{InboxProjector, UserId};
use subscription_engine::{Criteria, LetterFilter, Standing, State, Subscriber, Waited};

use crate::app::App;
use crate::cli::findings::standing_text;
use crate::exit::Exit;
use crate::output::note;

/// Warns on stderr of what is missing in the inbox of a user.
pub(super) async fn warn(app: &App, user: &UserId) -> Result<(), Exit> {
    let definition = InboxProjector.definition();
    let id = definition.id();
    let Some(overview) = app.engine.status(&Criteria::id(id)).await?.pop() else { return Ok(()) };
    let head = app.store.head().await?.position;
    // What it does not want is not missing.
    let is_behind = overview.lag > 0
        && !matches!(app.engine.wait_for(id, head, Duration::ZERO).await?, Waited::Passed { .. });
    if is_behind || matches!(overview.subscription.state, State::Error { .. }) {
        let now = app.store.clock().now().await?;
        let why = match &overview.standing {
            Standing::Idle | Standing::Lagging => String::new(),
            Standing::NoWorker => " and no worker runs it".to_owned(),
            standing => format!(", {}", standing_text(standing, now)),
        };
        note(&format!("warning: {id} is {} behind{why}; see `herald sub show {id}`", overview.lag));
    }
    if overview.subscription.letters.open > 0 {
        let of_user = LetterFilter { key: Some(user.stream().to_string()), ..LetterFilter::default() };
        if !app.engine.dead_letters(Some(id), &of_user, None, 1).await?.is_empty() {
            note(&format!(
                "warning: {id} has set events of {user} aside, so not all is here; see `herald dlq list {id} --key {}`",
                user.stream()
            ));
        }
    }
    Ok(())
}
