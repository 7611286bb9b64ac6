//! When an attempt is repeated, how long one may take, and what is done when nobody knows what came of it.

use std::time::Duration;

use subscription_engine::{InDoubt, RetryStrategy};

/// A schedule of more attempts than this is a mistake.
const MOST_ATTEMPTS: u32 = 100_000;

/// How one kind is attempted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempts {
    /// The waits before the further attempts; the last one is repeated.
    pub retry: Vec<Duration>,
    /// No attempt begins later than this after the first one, however the waits add up.
    pub give_up_after: Duration,
    /// What is done when nobody knows whether it arrived.
    pub in_doubt: InDoubt,
}

/// Why attempts cannot be made like this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSchedule {
    /// There is no wait.
    #[error("a schedule needs at least one wait, such as 1m,5m,15m")]
    Empty,
    /// A wait of no length.
    #[error("a wait must be at least a second")]
    TooShort,
    /// More attempts than anybody can mean.
    #[error("that would be more than {MOST_ATTEMPTS} attempts; lengthen the last wait or give up earlier")]
    TooMany,
}

impl Default for Attempts {
    /// Again after 1, 5, 15, 30 and 60 minutes, then hourly; given up after 24 hours; sent again when in doubt.
    fn default() -> Self {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        Self {
            retry: [1, 5, 15, 30, 60].map(minutes).to_vec(),
            give_up_after: minutes(24 * 60),
            in_doubt: InDoubt::Resend,
        }
    }
}

impl Attempts {
    /// Says what is wrong with these numbers.
    pub fn check(&self) -> Result<(), InvalidSchedule> {
        match (self.retry.iter().min(), self.retry.last()) {
            (Some(shortest), _) if *shortest < Duration::from_secs(1) => Err(InvalidSchedule::TooShort),
            (Some(_), Some(last))
                if self.give_up_after.div_duration_f64(*last) >= f64::from(MOST_ATTEMPTS) =>
            {
                Err(InvalidSchedule::TooMany)
            }
            (Some(_), Some(_)) => Ok(()),
            _ => Err(InvalidSchedule::Empty),
        }
    }

    /// The wait before the further attempt of this number, from 0.
    fn wait(retry: &[Duration], number: u32) -> Duration {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        retry.get(number).or(retry.last()).copied().unwrap_or(Duration::MAX)
    }

    pub(super) fn strategy(&self) -> RetryStrategy {
        let (mut further, mut passed) = (0, Duration::ZERO);
        while further < MOST_ATTEMPTS {
            passed = passed.saturating_add(Self::wait(&self.retry, further));
            if passed > self.give_up_after {
                break;
            }
            further += 1;
        }
        let retry = self.retry.clone();
        RetryStrategy::own(further, move |number| Self::wait(&retry, number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n22_the_default_schedule_of_mails() {
        let attempts = Attempts::default();
        attempts.check().unwrap();
        let waits: Vec<u64> =
            (0..8).map(|number| Attempts::wait(&attempts.retry, number).as_secs() / 60).collect();
        assert_eq!(waits, [1, 5, 15, 30, 60, 60, 60, 60]);
        // 111 minutes for the first five, then an hour each: the last one begins after 23 h 51 min.
        assert_eq!(attempts.strategy().max_attempts(), 27);
    }

    #[test]
    fn o04_schedules_that_cannot_be_are_refused() {
        let attempts = |retry: &[u64], hours: u64| Attempts {
            retry: retry.iter().map(|wait| Duration::from_secs(*wait)).collect(),
            give_up_after: Duration::from_secs(hours * 3_600),
            in_doubt: InDoubt::Hold,
        };
        assert_eq!(attempts(&[], 1).check(), Err(InvalidSchedule::Empty));
        assert_eq!(attempts(&[60, 0], 1).check(), Err(InvalidSchedule::TooShort));
        assert_eq!(attempts(&[1], 24 * 100).check(), Err(InvalidSchedule::TooMany));
        assert_eq!(attempts(&[3_600], 0).strategy().max_attempts(), 0);
        assert_eq!(attempts(&[10, 20], 1).strategy().max_attempts(), 180);
    }
}
