//! When to try again, and when to stop trying.
//!
//! The only place that uses the `backoff` crate, and only to compute delays: attempts are counted and the
//! next time is kept in the subscription's row, so neither is lost by a restart.

use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;
use store::Timestamp;

/// No delay is longer than this, whatever the factor.
const LONGEST_DELAY: Duration = Duration::from_secs(30 * 24 * 3600);

/// What happens after a failure.
#[derive(Clone, Debug, PartialEq)]
pub enum RetryStrategy {
    /// Try again by the clock: after `base_delay`, then each time `delay_factor` times later.
    ClockBased {
        /// The delay before the first further attempt.
        base_delay: Duration,
        /// How much longer each further delay is.
        delay_factor: f64,
        /// How many further attempts there are.
        max_attempts: u32,
        /// No delay is longer than this.
        max_delay: Option<Duration>,
    },
    /// Give up at once.
    None,
}

impl Default for RetryStrategy {
    /// 5, 10, 20, 40 and 80 seconds, then it gives up.
    fn default() -> Self {
        Self::ClockBased {
            base_delay: Duration::from_secs(5),
            delay_factor: 2.0,
            max_attempts: 5,
            max_delay: None,
        }
    }
}

impl RetryStrategy {
    /// How many further attempts there are at most.
    pub fn max_attempts(&self) -> u32 {
        match self {
            Self::ClockBased { max_attempts, .. } => *max_attempts,
            Self::None => 0,
        }
    }

    /// When to try again after `attempt` further attempts have failed; none: no more.
    pub(crate) fn next_retry(&self, attempt: u32, now: Timestamp) -> Option<Timestamp> {
        let Self::ClockBased { base_delay, delay_factor, max_attempts, max_delay } = self else {
            return None;
        };
        if attempt >= *max_attempts {
            return None;
        }
        let mut delays = ExponentialBackoff {
            initial_interval: *base_delay,
            current_interval: *base_delay,
            multiplier: *delay_factor,
            max_interval: max_delay.unwrap_or(LONGEST_DELAY),
            // The crate would give up by its own clock after a quarter of an hour; attempts are counted here.
            max_elapsed_time: None,
            randomization_factor: 0.0,
            ..ExponentialBackoff::default()
        };
        let delay = (0..=attempt).filter_map(|_| delays.next_backoff()).last()?;
        Some(now.plus(delay.min(max_delay.unwrap_or(LONGEST_DELAY))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delays(strategy: &RetryStrategy) -> Vec<u64> {
        let t0 = Timestamp::from_micros(0);
        (0..).map_while(|attempt| strategy.next_retry(attempt, t0)).map(|at| at.since(t0).as_secs()).collect()
    }

    #[test]
    fn e30_the_default_waits_5_10_20_40_80_seconds_and_gives_up() {
        assert_eq!(delays(&RetryStrategy::default()), [5, 10, 20, 40, 80]);
    }

    #[test]
    fn e30_a_longest_delay_caps_the_others() {
        let strategy = RetryStrategy::ClockBased {
            base_delay: Duration::from_secs(5),
            delay_factor: 3.0,
            max_attempts: 4,
            max_delay: Some(Duration::from_secs(20)),
        };
        assert_eq!(delays(&strategy), [5, 15, 20, 20]);
    }

    #[test]
    fn e30_none_gives_up_at_once() {
        assert!(delays(&RetryStrategy::None).is_empty());
    }
}
