//! How fast subscriptions move: where they stood at one look, and where they stand at the next.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use store::Position;
use subscription_engine::{Overview, Standing};

/// Between two looks that are made only for this.
pub(super) const BETWEEN: Duration = Duration::from_millis(500);

/// Where everything stood at a moment.
pub(super) struct Stood {
    at: Instant,
    pub(super) head: i64,
    positions: HashMap<String, i64>,
}

impl Stood {
    pub(super) fn new(head: Position, overviews: &[Overview]) -> Self {
        let positions = overviews
            .iter()
            .map(|one| (one.subscription.id.clone(), one.subscription.read_from().0))
            .collect();
        Self { at: Instant::now(), head: head.0, positions }
    }

    /// Positions a second since then, of one that stands there at this later moment.
    pub(super) fn rate(&self, overview: &Overview, later: &Self) -> Option<f64> {
        let stood = *self.positions.get(&overview.subscription.id)?;
        self.rate_of(stood, overview.subscription.read_from().0, later)
    }

    /// How fast the log grew.
    pub(super) fn append_rate(&self, later: &Self) -> Option<f64> {
        self.rate_of(self.head, later.head, later)
    }

    fn rate_of(&self, from: i64, to: i64, later: &Self) -> Option<f64> {
        let seconds = later.at.duration_since(self.at).as_secs_f64();
        // What was set back has no rate.
        let moved = u32::try_from(to - from).ok()?;
        (seconds > 0.0).then(|| (f64::from(moved) / seconds * 10.0).round() / 10.0)
    }
}

/// Whether it is worth a second look.
pub(super) fn moves(overview: &Overview) -> bool {
    overview.standing == Standing::Lagging
}

/// How long it takes until nothing waits any more, if all goes on like this.
pub(super) fn time_left(overview: &Overview, rate: Option<f64>) -> Option<Duration> {
    let rate = rate.filter(|rate| *rate > 0.0 && moves(overview))?;
    let lag = u32::try_from(overview.lag).ok().filter(|lag| *lag > 0)?;
    Some(Duration::from_secs_f64((f64::from(lag) / rate).ceil()))
}
