//! Reading what stands before an event that a reader already has, inside that reader's transaction if it has one.

use super::query::Range;
use super::row::Reader;
use super::{Direction, MAX_PAGE_EVENTS, Page, ReadError};
use crate::event::Position;
use crate::filter::Filter;
use crate::hooks::Reading;
use crate::store::Store;
use crate::tx::Tx;

impl Store {
    /// The events between two positions, without either, in this direction, at most `limit`. To go on, put
    /// `scanned_to` in place of the position at which the read began.
    ///
    /// `before` must be a position that a read has delivered, or one before that: what stands there is settled, so no
    /// head has to be found, and this shows the same whenever it is asked.
    pub async fn read_between(
        &self,
        tx: Option<&mut Tx>,
        filter: &Filter,
        (after, before): (Position, Position),
        direction: Direction,
        limit: usize,
    ) -> Result<Page, ReadError> {
        let limit = limit.min(MAX_PAGE_EVENTS);
        let up_to = Position(before.0.saturating_sub(1)).max(after);
        let range = Range { after, up_to, direction };
        let reading = Reading::Log { filter, direction, limit };
        let page = async {
            let reader = match tx {
                None => Reader::Pool(self.database()),
                Some(tx) => {
                    tx.usable()?;
                    Reader::Transaction(tx.connection())
                }
            };
            self.scan_by(reader, filter, range, limit).await
        };
        self.hooked(reading, page, |page| &page.events).await
    }
}
