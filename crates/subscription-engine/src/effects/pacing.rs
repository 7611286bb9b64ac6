//! How fast a destination is sent to: a steady pace, and how many may go ahead of it at once.

use std::time::Duration;

use store::Timestamp;

/// One sending each `interval` in the long run; after a rest `burst` may go at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pacing {
    /// The time between two sendings at the steady pace.
    pub interval: Duration,
    /// How many may go at once; at least one.
    pub burst: u32,
}

impl Pacing {
    /// Asks for a sending now, where the next one at the steady pace is due at `paced_at`. Answers when the one
    /// after it is due, or how long to wait.
    pub(crate) fn take(&self, paced_at: Timestamp, now: Timestamp) -> Result<Timestamp, Timestamp> {
        let ahead = self.interval.saturating_mul(self.burst.max(1) - 1);
        let early = paced_at.since(now);
        if early > ahead {
            return Err(now.plus(early - ahead));
        }
        Ok(paced_at.max(now).plus(self.interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e51_a_burst_then_the_steady_pace() {
        let pacing = Pacing { interval: Duration::from_secs(10), burst: 3 };
        let at = |seconds: u64| Timestamp::from_micros(0).plus(Duration::from_secs(seconds));
        let mut paced_at = at(0);
        let mut sent = Vec::new();
        let mut now = at(100);
        while sent.len() < 6 {
            match pacing.take(paced_at, now) {
                Ok(next) => {
                    sent.push(now.since(at(100)).as_secs());
                    paced_at = next;
                }
                Err(until) => {
                    assert!(until > now);
                    now = until;
                }
            }
        }
        assert_eq!(sent, [0, 0, 0, 10, 20, 30]);
        assert_eq!(Pacing { burst: 0, ..pacing }.take(at(5), at(0)), Err(at(5)));
    }
}
