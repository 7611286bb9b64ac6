//! What becomes of an event that cannot be handled, once all attempts are used up: stop, or go on without it.
//!
//! Who goes on sets the event aside as a dead letter, and with it all later events of its key, so that the
//! order within a key holds. Two caps keep a broken handler from draining the log into the dead letters.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use store::Event;
use uuid::Uuid;

use crate::subscription::FailedEvent;

/// Of about so many events the share of those set aside is taken …
const RECENT_EVENTS: u64 = 1_000;
/// … and of no fewer than these, so that the first letter is no reason to stop.
const FEWEST_EVENTS: u64 = 100;
/// The indexes of both databases take keys of this length; longer ones are kept as a beginning and a digest.
const LONGEST_KEY: usize = 255;
/// The namespace of those digests.
const LONG_KEYS: Uuid = Uuid::from_u128(0x1d1f_41d5_7f0e_5d0c_8f4b_50c2_3b1d_7a90);

/// What becomes of an event whose attempts are used up.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Poison {
    /// The subscription stops in error, right before the event.
    #[default]
    Stop,
    /// The event becomes a dead letter and the subscription goes on. Later events of the same key become
    /// letters behind it without being tried, until it is handled or discarded.
    Park {
        /// Within what order must hold. Handle open letters before you change this.
        key: ParkKey,
        /// With so many open letters the subscription stops instead.
        cap_count: u64,
        /// It also stops where more than this share of its recent events (of about the last thousand) would
        /// be set aside; 1.0 never does.
        cap_share: f64,
    },
}

impl Poison {
    /// Park by stream, up to 1,000 letters and half of the traffic: where more fails than works it is not the
    /// events that are broken.
    pub fn park() -> Self {
        Self::Park { key: ParkKey::Stream, cap_count: 1_000, cap_share: 0.5 }
    }

    /// Park by what this function says of an event, with the caps of [`Poison::park`].
    pub fn park_by(key: impl Fn(&Event) -> String + Send + Sync + 'static) -> Self {
        Self::Park { key: ParkKey::Of(KeyFunction(Arc::new(key))), cap_count: 1_000, cap_share: 0.5 }
    }

    /// The key within which this event must be handled in order. (What was parked before the policy became
    /// stop was parked by stream, unless that was changed as well.)
    pub(crate) fn key_of(&self, event: &Event) -> String {
        match self {
            Self::Park { key: ParkKey::Of(function), .. } => function.key_of(event),
            Self::Park { key: ParkKey::Stream, .. } | Self::Stop => event.stream.to_string(),
        }
    }

    /// Why a subscription that would have these letters has too many of them, if it has.
    pub(crate) fn refuses(&self, letters: Letters) -> Option<TooMany> {
        let Self::Park { cap_count, cap_share, .. } = self else { return Some(TooMany::Stop) };
        if letters.open > *cap_count {
            return Some(TooMany::Count { cap: *cap_count });
        }
        (letters.share() > *cap_share).then_some(TooMany::Share { cap: *cap_share })
    }
}

/// Within what the order of events must hold when one of them is set aside.
#[derive(Clone, Debug, PartialEq)]
pub enum ParkKey {
    /// Within a stream.
    Stream,
    /// Within what a function says.
    Of(KeyFunction),
}

/// Says of an event to which key it belongs. Where it panics the stream stands in.
#[derive(Clone)]
pub struct KeyFunction(Arc<dyn Fn(&Event) -> String + Send + Sync>);

impl KeyFunction {
    fn key_of(&self, event: &Event) -> String {
        match catch_unwind(AssertUnwindSafe(|| (self.0)(event))) {
            Ok(key) => storable(key),
            Err(_) => event.stream.to_string(),
        }
    }
}

impl fmt::Debug for KeyFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyFunction")
    }
}

impl PartialEq for KeyFunction {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A key that both databases can keep and find by an index.
fn storable(key: String) -> String {
    let key = if key.contains('\0') { key.replace('\0', "\u{fffd}") } else { key };
    if key.len() <= LONGEST_KEY {
        return key;
    }
    let digest = Uuid::new_v5(&LONG_KEYS, key.as_bytes());
    format!("{}…{digest}", &key[..key.floor_char_boundary(200)])
}

/// How many dead letters a subscription has, and how many of its events of late became some. Nothing is counted
/// while it has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Letters {
    /// So many are open.
    pub open: u64,
    /// Of so many events lately …
    pub recent_events: u64,
    /// … so many were set aside.
    pub recent: u64,
}

impl Letters {
    /// After so many more events were handled and set aside.
    pub(crate) fn after(self, handled: u64, parked: u64) -> Self {
        let open = self.open + parked;
        if open == 0 {
            return Self::default();
        }
        let (mut recent_events, mut recent) = (self.recent_events + handled + parked, self.recent + parked);
        // What is long ago counts half, and half again.
        while recent_events > RECENT_EVENTS {
            (recent_events, recent) = (recent_events / 2, recent / 2);
        }
        Self { open, recent_events, recent }
    }

    #[expect(clippy::cast_precision_loss, reason = "both are at most a few thousand")]
    fn share(self) -> f64 {
        self.recent as f64 / self.recent_events.max(FEWEST_EVENTS) as f64
    }
}

/// Why an event is not set aside.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub(crate) enum TooMany {
    #[error("{cap} open dead letters are the most that its policy allows")]
    Count { cap: u64 },
    #[error("more than {:.0} % of its recent events would be dead letters", .cap * 100.0)]
    Share { cap: f64 },
    #[error("its policy is to stop")]
    Stop,
}

/// A subscription stops at an event that it would have set aside.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotParked {
    #[error("it failed and could not be set aside: {too_many}")]
    Failed {
        too_many: TooMany,
        #[source]
        error: crate::subscriber::BoxError,
    },
    #[error(
        "it stands behind the dead letter at position {behind} (key {key:?}) and could not be set aside as \
         well: {too_many}; retry or discard dead letters, then reactivate"
    )]
    Behind { too_many: TooMany, behind: store::Position, key: String },
}

/// Events that became dead letters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parked {
    /// How many.
    pub letters: u64,
    /// The first of them.
    pub first: FailedEvent,
    /// Why that one: what went wrong, or behind what it stands.
    pub why: String,
}

impl Parked {
    /// What came first, and how many they are together.
    pub(crate) fn and(first: Option<Self>, then: Option<Self>) -> Option<Self> {
        match (first, then) {
            (Some(first), Some(then)) => Some(Self { letters: first.letters + then.letters, ..first }),
            (first, then) => first.or(then),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e32_the_share_is_of_recent_events_and_not_of_the_first_few() {
        let policy = Poison::Park { key: ParkKey::Stream, cap_count: 10_000, cap_share: 0.1 };
        let mut letters = Letters::default();
        for _ in 0..10 {
            letters = letters.after(0, 1);
            assert_eq!(policy.refuses(letters), None);
        }
        assert_eq!(policy.refuses(letters.after(0, 1)), Some(TooMany::Share { cap: 0.1 }));
        // A long time without trouble, and there is room again; but one hundred in a row are too many.
        letters = letters.after(1_000_000, 0);
        assert!(letters.recent_events <= RECENT_EVENTS);
        assert_eq!(policy.refuses(letters.after(0, 1)), None);
        assert_eq!(policy.refuses(letters.after(0, 150)), Some(TooMany::Share { cap: 0.1 }));
    }

    #[test]
    fn e32_the_count_is_of_open_letters() {
        let policy = Poison::Park { key: ParkKey::Stream, cap_count: 2, cap_share: 1.0 };
        let two = Letters::default().after(0, 2);
        assert_eq!(policy.refuses(two), None);
        assert_eq!(policy.refuses(two.after(5, 1)), Some(TooMany::Count { cap: 2 }));
        assert_eq!(Letters::default().after(5, 0), Letters::default(), "nothing is counted without letters");
    }

    #[test]
    fn e32_a_key_of_any_length_and_alphabet_can_be_kept() {
        assert_eq!(storable("user-1".into()), "user-1");
        assert_eq!(storable("a\0b".into()), "a\u{fffd}b");
        let long = |end: &str| storable(format!("{}{end}", "ü".repeat(1_000)));
        assert!(long("a").len() <= LONGEST_KEY && long("a") != long("b") && long("a") == long("a"));
    }
}
