//! For whom the readers of this process wait, and since when: so that the log names each of them once, not at every
//! look, and so that who is waited for all day is not looked for a hundred times a second.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::Instant;

use super::holders::describe_holders;

/// An appender for whom readers wait for this long is worth a word.
pub(super) const NOTABLE_WAIT: Duration = Duration::from_secs(1);

/// Kept by whoever looks at the lock table, one at a time.
#[derive(Debug, Default)]
pub(crate) struct Waited(HashMap<String, Wait>);

#[derive(Clone, Copy, Debug)]
struct Wait {
    since: Instant,
    is_told: bool,
}

impl Waited {
    /// Whether readers have waited for somebody for so long that a moment more does not matter.
    pub(super) fn is_long(&self) -> bool {
        self.0.values().any(|wait| wait.since.elapsed() >= NOTABLE_WAIT)
    }

    /// Nobody is waited for any more.
    pub(super) fn is_over(&mut self) {
        if self.0.drain().any(|(_, wait)| wait.is_told) {
            tracing::info!("readers go on: what they have waited for has ended");
        }
    }

    /// Notes that since then these transactions have kept readers waiting, and warns of those that did for long.
    pub(super) async fn note(
        &mut self,
        blockers: &HashSet<String>,
        since: Instant,
        connection: &mut PgConnection,
    ) {
        let untold = self.untold(blockers, since);
        if untold.is_empty() {
            return;
        }
        let described = match describe_holders(connection).await {
            Ok(described) => described,
            Err(error) => {
                tracing::debug!(%error, "could not find out for whom readers wait");
                return;
            }
        };
        for holder in described.iter().filter(|holder| untold.contains(&holder.transaction)) {
            if let Some(wait) = self.0.get_mut(&holder.transaction) {
                wait.is_told = true;
            }
            tracing::warn!(
                blocker = holder.transaction,
                "readers wait for an append that is not committed: {holder}; to give it up: {}",
                holder.ending()
            );
        }
    }

    fn untold(&mut self, blockers: &HashSet<String>, since: Instant) -> HashSet<String> {
        self.0.retain(|transaction, _| blockers.contains(transaction));
        for transaction in blockers {
            self.0.entry(transaction.clone()).or_insert(Wait { since, is_told: false });
        }
        let is_untold = |wait: &Wait| !wait.is_told && wait.since.elapsed() >= NOTABLE_WAIT;
        self.0.iter().filter(|(_, wait)| is_untold(wait)).map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn s10_who_is_waited_for_is_told_of_after_a_second() {
        let mut waited = Waited::default();
        let blockers = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<HashSet<_>>();
        let start = Instant::now();
        assert_eq!(waited.untold(&blockers(&["a", "b"]), start), blockers(&[]));
        tokio::time::advance(NOTABLE_WAIT).await;

        // B has ended meanwhile and C come.
        assert_eq!(waited.untold(&blockers(&["a", "c"]), Instant::now()), blockers(&["a"]));

        assert!(waited.is_long());
        waited.is_over();
        assert!(!waited.is_long());
    }
}
