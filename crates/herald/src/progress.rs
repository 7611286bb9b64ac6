//! How far long work has come: a bar on a terminal, elsewhere a line now and then. On stderr, so that data stays data.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::output::{duration, note};

/// A bar is drawn this often.
const REDRAW: Duration = Duration::from_millis(100);
/// Lines are at least this far apart …
const LINE_PAUSE: Duration = Duration::from_secs(1);
/// … and come after so much time, or after so much work.
const LINE_TIME: Duration = Duration::from_secs(10);
const LINE_PERCENT: u64 = 5;
const BAR: usize = 28;

/// Work of a known length.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    is_terminal: bool,
    start: Instant,
    shown_at: Instant,
    shown_percent: u64,
    is_drawn: bool,
}

impl Progress {
    pub(crate) fn new(what: &'static str) -> Self {
        let is_terminal =
            std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let now = Instant::now();
        Self { what, is_terminal, start: now, shown_at: now, shown_percent: 0, is_drawn: false }
    }

    /// So much of all of it is done, and that were so many events.
    pub(crate) fn show(&mut self, done: u64, all: u64, events: u64) {
        let now = Instant::now();
        let percent = done.saturating_mul(100).checked_div(all).unwrap_or(100);
        let pause = now - self.shown_at;
        let is_due = if self.is_terminal {
            pause >= REDRAW
        } else {
            pause >= LINE_TIME || (pause >= LINE_PAUSE && percent >= self.shown_percent + LINE_PERCENT)
        };
        if !is_due {
            return;
        }
        let text = text(now - self.start, done, all, events);
        (self.shown_at, self.shown_percent) = (now, percent);
        if self.is_terminal {
            let full = usize::try_from(percent.min(100)).unwrap_or(0) * BAR / 100;
            let bar = format!("{}{}", "=".repeat(full), " ".repeat(BAR - full));
            // What stood there before may have been longer.
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K{} [{bar}] {percent:>3} % {text}", self.what);
            self.is_drawn = true;
        } else {
            note(&format!("{} {percent} % {text}", self.what));
        }
    }
}

impl Drop for Progress {
    /// The bar makes room for what is said next.
    fn drop(&mut self) {
        if self.is_drawn {
            let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

fn text(elapsed: Duration, done: u64, all: u64, events: u64) -> String {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = events.saturating_mul(1_000) / millis;
    let left = millis.checked_mul(all.saturating_sub(done)).map_or(0, |millis| millis / done.max(1));
    format!("{events} events, {rate}/s, {} left", duration(Duration::from_millis(left)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c08_rate_and_time_left() {
        assert_eq!(text(Duration::from_secs(2), 1_000, 4_000, 900), "900 events, 450/s, 6s left");
        assert_eq!(text(Duration::ZERO, 0, 0, 0), "0 events, 0/s, 0s left");
    }
}
