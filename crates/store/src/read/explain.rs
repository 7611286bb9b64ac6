//! How the database finds what a read asks for, told by the database itself.

use super::query::Range;
use super::row::{Reader, fetch_lines};
use super::{Direction, MAX_PAGE_EVENTS, ReadError, page_limit, shorten_to_look};
use crate::database::DatabaseKind;
use crate::event::Position;
use crate::filter::Filter;
use crate::store::Store;

impl Store {
    /// The plan of the statement with which a read of this page would begin, for people. On PostgreSQL the
    /// statement is run, and the plan says what it touched.
    ///
    /// Forwards from after the position, backwards from it.
    pub async fn explain(
        &self,
        filter: &Filter,
        direction: Direction,
        from: Position,
        limit: usize,
    ) -> Result<String, ReadError> {
        let kind = self.database().kind();
        let mut range = match direction {
            Direction::Forwards => Range { after: from, up_to: self.head().await?.position, direction },
            Direction::Backwards => Range { after: Position::START, up_to: from, direction },
        };
        let stored = self.stored(filter);
        let plan = self.plan(&stored);
        let limit = page_limit(limit.min(MAX_PAGE_EVENTS));
        if plan.merges() {
            range.shorten(limit.saturating_mul(super::FIRST_WINDOW));
        }
        if plan.looks_at_others() {
            shorten_to_look(&mut Reader::Pool(self.database()), &plan, &mut range).await?;
        }
        let mut query = plan.events(range, limit);
        let explain = match kind {
            DatabaseKind::Postgres => "EXPLAIN (ANALYZE, BUFFERS, COSTS OFF, TIMING OFF, SUMMARY OFF)",
            DatabaseKind::Sqlite => "EXPLAIN QUERY PLAN",
        };
        query.text = format!("{explain} {}", query.text);
        Ok(fetch_lines(self.database(), query).await?.join("\n"))
    }
}
