//! What the stories begin with: names, and events that differ by a number.

use store::{Event, Filter, Json, NewEvent, Position, Store, StreamName};

/// An event with this number in its payload.
pub(crate) fn event(number: u32) -> NewEvent {
    NewEvent::new("Acme.Test:Happened", Json::of(&serde_json::json!({ "number": number })).unwrap())
}

/// The name of a stream.
pub(crate) fn stream(name: &str) -> StreamName {
    StreamName::new(name).unwrap()
}

/// Everything in the log, in its order.
pub(crate) async fn all_events(store: &Store) -> Vec<Event> {
    let mut events = Vec::new();
    let mut after = Position::START;
    loop {
        let page = store.read(&Filter::all(), after, usize::MAX).await.unwrap();
        if page.events.is_empty() {
            return events;
        }
        after = page.scanned_to;
        events.extend(page.events);
    }
}
