//! What came of a cell: figures, and what about them is wrong.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use testkit::Findings;
use uuid::Uuid;

use super::Plan;
use super::appender::Kept;
use super::disturbance::Disturbance;
use super::reader::Reading;

/// The time from an acknowledgement to the delivery, in one process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Delays {
    /// Half of the events were faster.
    pub p50: Duration,
    /// Of a hundred events one was slower.
    pub p99: Duration,
    /// The slowest.
    pub max: Duration,
}

impl Delays {
    pub(super) fn of(acknowledged: &[Kept], reading: &Reading) -> Self {
        let delivered: HashMap<Uuid, _> =
            reading.delivered.iter().map(|(event, at)| (event.id, *at)).collect();
        let mut delays: Vec<Duration> = acknowledged
            .iter()
            .filter_map(|kept| Some(delivered.get(&kept.event.id)?.saturating_duration_since(kept.at?)))
            .collect();
        delays.sort_unstable();
        let at = |share: usize| {
            delays.get((delays.len() * share / 100).min(delays.len().saturating_sub(1))).copied()
        };
        Self {
            p50: at(50).unwrap_or_default(),
            p99: at(99).unwrap_or_default(),
            max: delays.last().copied().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Delays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |delay: Duration| delay.as_secs_f64() * 1_000.0;
        write!(f, "{:.1} / {:.1} / {:.0}", ms(self.p50), ms(self.p99), ms(self.max))
    }
}

/// What came of a cell.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was to be done.
    pub plan: Plan,
    /// Where.
    pub database: &'static str,
    /// Appends that were acknowledged.
    pub appends: usize,
    /// Events in the table.
    pub events: usize,
    /// Events that were rolled back and are in the table all the same.
    pub revived: usize,
    /// What the oracle found, over both readers.
    pub findings: Findings,
    /// From the first append to the end of the last one.
    pub took: Duration,
    /// The reader of everything.
    pub feed: Delays,
    /// The reader of one type.
    pub typed: Delays,
    /// Calls that failed, of appenders and readers.
    pub errors: Vec<String>,
}

impl Outcome {
    /// What is wrong with it; nothing if all is well.
    pub fn violations(&self) -> Vec<String> {
        let mut violations = Vec::new();
        if !self.findings.are_none() {
            violations.push(format!("{:?}", self.findings));
        }
        if self.revived > 0 {
            violations.push(format!("{} events that were rolled back are in the log", self.revived));
        }
        if self.appends == 0 {
            violations.push("nothing was appended".to_owned());
        }
        if let Some(error) = self.errors.first()
            && !self.plan.disturbance.breaks_the_server()
        {
            violations.push(format!("{} calls failed, the first one: {error}", self.errors.len()));
        }
        for (reader, delays) in [("the feed", self.feed), ("the filtered reader", self.typed)] {
            if let Some(bound) = self.delay_bound()
                && delays.max > bound
            {
                violations.push(format!("{reader} was {:?} late, allowed are {bound:?}", delays.max));
            }
            // Without it the cell would show nothing.
            if let Some(silence) = self.plan.disturbance.silence(self.plan.span)
                && delays.max < silence / 2
            {
                violations
                    .push(format!("{reader} was never held back, the appender that was silent was not"));
            }
        }
        violations
    }

    /// How late an event may be delivered; a server that is down delivers nothing.
    fn delay_bound(&self) -> Option<Duration> {
        let disturbance = self.plan.disturbance;
        let silence = disturbance.silence(self.plan.span).unwrap_or_default();
        (!disturbance.breaks_the_server() && disturbance != Disturbance::KilledProcess)
            .then(|| silence + self.plan.delay_bound)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, database, appends, events, revived, findings, took, feed, typed, errors } = self;
        let Findings { lost, twice, out_of_order, not_ascending, unfounded } = findings;
        let rate = *appends as f64 / took.as_secs_f64();
        write!(
            f,
            "| {database} | {} | {} | {} | {rate:.0} | {events} | {lost} / {twice} / {out_of_order} / {not_ascending} \
             | {unfounded} / {revived} | {feed} | {typed} | {} |",
            plan.disturbance.name(),
            plan.way.name(),
            plan.appenders,
            errors.len(),
        )
    }
}
