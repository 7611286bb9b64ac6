//! What the feed knows of one subscription that reads from it.

use store::Position;

use super::ring::Moment;

/// Of fewer events than this nothing is concluded.
const SAMPLE: usize = 100;
/// Whoever wants less than one event of so many reads for itself while it is far behind: looking them up costs less
/// than reading all.
const ONE_OF: usize = 4;

/// A subscription that reads from the feed.
#[derive(Debug)]
pub(crate) struct Reader {
    /// What was read before is not believed: the log may have been cut since.
    pub(super) believes_after: Moment,
    /// That nothing follows must have been found after this; none: after it is asked.
    pub(super) asked: Option<Moment>,
    /// It wants few of all events …
    is_selective: bool,
    /// … and what it was given last was full: it is probably far behind.
    is_behind: bool,
}

impl Reader {
    pub(super) fn new(believes_after: Moment) -> Self {
        Self { believes_after, asked: None, is_selective: false, is_behind: false }
    }

    /// From here on only a look that begins later can say that nothing follows.
    pub(crate) fn look_anew(&mut self) {
        self.asked = None;
    }

    /// Whether it should read for itself what nobody has in memory.
    pub(super) fn reads_for_itself(&self) -> bool {
        self.is_selective && self.is_behind
    }

    pub(super) fn was_given(&mut self, is_full: bool) {
        self.is_behind = is_full;
    }

    /// It wanted so many of so many events.
    pub(super) fn wanted(&mut self, wanted: usize, of: usize) {
        if of >= SAMPLE {
            self.is_selective = wanted.saturating_mul(ONE_OF) < of;
        }
    }
}

/// About how many events stand between two positions: as many as there are positions.
pub(super) fn between(after: Position, to: Position) -> usize {
    usize::try_from(to.0.saturating_sub(after.0)).unwrap_or(0)
}
