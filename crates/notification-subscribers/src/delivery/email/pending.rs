//! Whether anything that a mail reminds of is still pending, according to the user's own stream.

use std::collections::BTreeSet;

use store::{Store, Tx};
use subscription_engine::BoxError;

use crate::events::{UserHasAcknowledgedNotification, UserWasNotified};
use crate::ids::UserId;
use crate::operations::RemindsOf;

/// A stream is read in pages of this size.
const PAGE: usize = 500;

/// Reads the stream from its end: what stands there last of a notification says whether it is pending.
pub(super) async fn is_any_pending(
    store: &Store,
    tx: &mut Tx,
    reminds_of: &RemindsOf,
) -> Result<bool, BoxError> {
    let stream = UserId::new(reminds_of.user_id.as_str())?.stream();
    let mut unknown: BTreeSet<&str> = reminds_of.notification_ids.iter().map(String::as_str).collect();
    let mut before = None;
    while !unknown.is_empty() {
        let page = store.read_stream_backwards_in(tx, &stream, before, PAGE).await?;
        for event in &page.events {
            if let Some(acknowledged) = event.decode::<UserHasAcknowledgedNotification>() {
                unknown.remove(acknowledged?.notification_id.as_str());
            } else if let Some(notified) = event.decode::<UserWasNotified>()
                && unknown.contains(notified?.notification_id.as_str())
            {
                return Ok(true);
            }
        }
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    Ok(false)
}
