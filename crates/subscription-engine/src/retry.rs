//! When to try again, and when to stop trying.
//!
//! The only place that uses the `backoff` crate, and only to compute delays: attempts are counted and the
//! next time is kept in the subscription's row, so neither is lost by a restart.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use backoff::ExponentialBackoff;
use backoff::backoff::Backoff;
use store::Timestamp;

/// No delay is longer than this, whatever the factor.
const LONGEST_DELAY: Duration = Duration::from_secs(30 * 24 * 3600);
/// The delay where an author's function panics: the longest of the default strategy.
const DELAY_OF_A_PANIC: Duration = Duration::from_secs(80);
/// The name of the strategy of those who name none.
pub(crate) const DEFAULT: &str = "default";

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
    /// Try again when a function of the author's says.
    Own {
        /// How many further attempts there are.
        max_attempts: u32,
        /// The delay before each of them.
        delay: DelayFunction,
    },
}

/// Says how long to wait after so many further attempts have failed, from 0 on.
#[derive(Clone)]
pub struct DelayFunction(Arc<dyn Fn(u32) -> Option<Duration> + Send + Sync>);

impl DelayFunction {
    /// None: no more attempts. A function that panics does not take the engine with it.
    fn delay(&self, attempt: u32) -> Option<Duration> {
        catch_unwind(AssertUnwindSafe(|| (self.0)(attempt))).unwrap_or(Some(DELAY_OF_A_PANIC))
    }
}

impl fmt::Debug for DelayFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DelayFunction")
    }
}

impl PartialEq for DelayFunction {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The retry strategies of a program, by the names by which its subscribers choose among them
/// ([`crate::Definition::with_retry_named`]). Two are always there: `default`, which is that of all who choose none, and
/// `none`.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryStrategies(BTreeMap<String, RetryStrategy>);

impl Default for RetryStrategies {
    fn default() -> Self {
        Self(BTreeMap::new()).with(DEFAULT, RetryStrategy::default()).with("none", RetryStrategy::None)
    }
}

impl RetryStrategies {
    /// With this one, in place of another one of this name.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, strategy: RetryStrategy) -> Self {
        self.0.insert(name.into(), strategy);
        self
    }

    pub(crate) fn get(&self, name: &str) -> Option<&RetryStrategy> {
        self.0.get(name)
    }

    /// The names, for people.
    pub(crate) fn names(&self) -> String {
        self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }
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
    /// An author's own: so many further attempts, after attempt k (from 0) the next one as much later as the function
    /// says.
    pub fn own(max_attempts: u32, delay: impl Fn(u32) -> Duration + Send + Sync + 'static) -> Self {
        Self::Own { max_attempts, delay: DelayFunction(Arc::new(move |attempt| Some(delay(attempt)))) }
    }

    /// The same strategy with each delay up to this share shorter or longer, at random, so that what failed together
    /// is not tried again together. A share of 0.2 makes 10 s anything from 8 s to 12 s.
    #[must_use]
    pub fn with_jitter(self, share: f64) -> Self {
        let share = share.clamp(0.0, 1.0);
        let max_attempts = self.max_attempts();
        let longest = match &self {
            Self::ClockBased { max_delay: Some(longest), .. } => *longest,
            _ => LONGEST_DELAY,
        };
        let delay = move |attempt| self.delay(attempt).map(|delay| jittered(delay, share).min(longest));
        Self::Own { max_attempts, delay: DelayFunction(Arc::new(delay)) }
    }

    /// How many further attempts there are at most.
    pub fn max_attempts(&self) -> u32 {
        match self {
            Self::ClockBased { max_attempts, .. } | Self::Own { max_attempts, .. } => *max_attempts,
            Self::None => 0,
        }
    }

    /// When to try again after `attempt` further attempts have failed; none: no more.
    pub(crate) fn next_retry(&self, attempt: u32, now: Timestamp) -> Option<Timestamp> {
        self.delay(attempt).map(|delay| now.plus(delay))
    }

    fn delay(&self, attempt: u32) -> Option<Duration> {
        if attempt >= self.max_attempts() {
            return None;
        }
        let (base_delay, delay_factor, max_delay) = match self {
            Self::ClockBased { base_delay, delay_factor, max_delay, .. } => {
                (base_delay, delay_factor, max_delay)
            }
            Self::Own { delay, .. } => return Some(delay.delay(attempt)?.min(LONGEST_DELAY)),
            Self::None => return None,
        };
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
        Some(delay.min(max_delay.unwrap_or(LONGEST_DELAY)))
    }
}

/// A delay that is up to this share shorter or longer.
fn jittered(delay: Duration, share: f64) -> Duration {
    let mut once = ExponentialBackoff {
        initial_interval: delay,
        current_interval: delay,
        randomization_factor: share,
        max_interval: LONGEST_DELAY,
        max_elapsed_time: None,
        ..ExponentialBackoff::default()
    };
    once.next_backoff().unwrap_or(delay)
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
    fn e30_an_authors_own_strategy_says_when() {
        let strategy = RetryStrategy::own(3, |attempt| Duration::from_secs(u64::from(attempt) * 7));
        assert_eq!(delays(&strategy), [0, 7, 14]);
        let endless = RetryStrategy::own(1, |_| Duration::MAX);
        assert_eq!(delays(&endless), [LONGEST_DELAY.as_secs()]);
        let broken = RetryStrategy::own(2, |_| panic!("no idea"));
        assert_eq!(delays(&broken), [80, 80]);
    }

    #[test]
    fn e30_jitter_stays_within_its_share() {
        let steady = RetryStrategy::default();
        let strategy = steady.clone().with_jitter(0.2);
        assert_eq!(strategy.max_attempts(), steady.max_attempts());
        let drawn: Vec<Vec<Duration>> =
            (0..200).map(|_| (0..5).filter_map(|attempt| strategy.delay(attempt)).collect()).collect();
        for delays in &drawn {
            assert_eq!(delays.len(), 5);
            for (delay, middle) in delays.iter().zip([5.0, 10.0, 20.0, 40.0, 80.0]) {
                let share = delay.as_secs_f64() / middle;
                assert!((0.799..=1.201).contains(&share), "{delay:?} around {middle} s");
            }
        }
        assert!(drawn.iter().any(|delays| delays != &drawn[0]), "no two of 200 differ");
        let RetryStrategy::ClockBased { base_delay, delay_factor, max_attempts, .. } = steady else {
            panic!("{steady:?}")
        };
        let max_delay = Some(base_delay);
        let capped = RetryStrategy::ClockBased { base_delay, delay_factor, max_attempts, max_delay };
        let capped = capped.with_jitter(1.0);
        assert!(
            (0..200).all(|_| capped.delay(0).is_some_and(|delay| delay <= base_delay)),
            "longer than the longest"
        );
        assert_eq!(RetryStrategy::None.with_jitter(0.2).delay(0), None);
    }

    #[test]
    fn e30_none_gives_up_at_once() {
        assert!(delays(&RetryStrategy::None).is_empty());
    }
}
