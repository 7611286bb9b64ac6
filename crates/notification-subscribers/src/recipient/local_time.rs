//! What a clock on somebody's wall says, and when they want to be left alone.
//!
//! Only this file knows of time zones; whatever is a duration is counted in UTC. An hour that a change of the clock
//! leaves out ends when it would have begun; of one that comes twice the first counts.

use jiff::civil::{DateTime, Time};
use jiff::tz::{AmbiguousOffset, TimeZone};
use serde::{Deserialize, Serialize};
use store::Timestamp;

/// Hours of the day in which somebody is not to be reminded, such as 22:00 to 07:00.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Hours", into = "Hours")]
pub struct QuietHours {
    from: Time,
    to: Time,
}

/// As they are written.
#[derive(Serialize, Deserialize)]
struct Hours {
    from: String,
    to: String,
}

/// The text is no quiet hours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} are no quiet hours; write them like 22:00-07:00")]
pub struct InvalidQuietHours(String);

const FORM: &str = "%H:%M";

impl QuietHours {
    /// Between two times of the day; the second may be of the next day.
    pub fn new(from: &str, to: &str) -> Result<Self, InvalidQuietHours> {
        let invalid = || InvalidQuietHours(format!("{from}-{to}").chars().take(40).collect());
        let parse = |text: &str| Time::strptime(FORM, text).map_err(|_| invalid());
        let (from, to) = (parse(from)?, parse(to)?);
        if from == to { Err(invalid()) } else { Ok(Self { from, to }) }
    }

    fn contains(&self, time: Time) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&time)
        } else {
            time >= self.from || time < self.to
        }
    }

    /// When they are over, if `now` is within them.
    pub(crate) fn end_of(&self, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let local = zone.to_datetime(instant(now)?);
        if !self.contains(local.time()) {
            return None;
        }
        let date = if local.time() < self.to { local.date() } else { local.date().tomorrow().ok()? };
        let end = first_instant(date.to_datetime(self.to), zone)?;
        // Where an hour comes twice the end may be behind us.
        (end > now).then_some(end)
    }
}

impl std::str::FromStr for QuietHours {
    type Err = InvalidQuietHours;

    fn from_str(text: &str) -> Result<Self, InvalidQuietHours> {
        let (from, to) =
            text.split_once('-').ok_or_else(|| InvalidQuietHours(text.chars().take(40).collect()))?;
        Self::new(from, to)
    }
}

impl std::fmt::Display for QuietHours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.from.strftime(FORM), self.to.strftime(FORM))
    }
}

impl TryFrom<Hours> for QuietHours {
    type Error = InvalidQuietHours;

    fn try_from(hours: Hours) -> Result<Self, InvalidQuietHours> {
        Self::new(&hours.from, &hours.to)
    }
}

impl From<QuietHours> for Hours {
    fn from(hours: QuietHours) -> Self {
        let shown = |time: Time| time.strftime(FORM).to_string();
        Self { from: shown(hours.from), to: shown(hours.to) }
    }
}

fn instant(timestamp: Timestamp) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_microsecond(timestamp.as_micros()).ok()
}

/// The first instant at which a wall clock shows this, or has passed it.
fn first_instant(wall: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(wall);
    let found = match ambiguous.offset() {
        AmbiguousOffset::Gap { .. } => {
            // The time is left out: it is over at the change itself.
            zone.following(ambiguous.earlier().ok()?).next()?.timestamp()
        }
        _ => ambiguous.earlier().ok()?,
    };
    Some(Timestamp::from_micros(found.as_microsecond()))
}

/// Whether there is a zone of this name.
pub(crate) fn is_zone(name: &str) -> bool {
    TimeZone::get(name).is_ok()
}

/// The zone of this name; UTC where there is none.
pub(crate) fn zone(name: Option<&str>) -> TimeZone {
    let Some(name) = name else { return TimeZone::UTC };
    TimeZone::get(name).unwrap_or_else(|error| {
        tracing::warn!("the time zone {name:?} is not known any more, UTC stands in: {error}");
        TimeZone::UTC
    })
}

/// An instant as a wall clock shows it, to the minute, with the name of the zone.
pub(crate) fn shown(timestamp: Timestamp, zone: &TimeZone) -> String {
    match instant(timestamp) {
        Some(instant) => {
            let local = zone.to_datetime(instant).strftime("%Y-%m-%d %H:%M");
            format!("{local} ({})", zone.iana_name().unwrap_or("UTC"))
        }
        None => timestamp.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn end(hours: &str, now: &str, name: &str) -> Option<Timestamp> {
        hours.parse::<QuietHours>().unwrap().end_of(at(now), &zone(Some(name)))
    }

    #[test]
    fn quiet_hours_end_by_the_clock_on_the_wall() {
        let night = "22:00-07:00";
        assert_eq!(end(night, "2026-01-10T20:59:59Z", "Europe/Vienna"), None);
        let seven = Some(at("2026-01-11T06:00:00Z"));
        assert_eq!(end(night, "2026-01-10T21:00:00Z", "Europe/Vienna"), seven);
        assert_eq!(end(night, "2026-01-11T05:59:59.999Z", "Europe/Vienna"), seven);
        assert_eq!(end(night, "2026-01-11T06:00:00Z", "Europe/Vienna"), None);
        assert_eq!(end("12:00-13:00", "2026-01-10T12:30:00Z", "UTC"), Some(at("2026-01-10T13:00:00Z")));
    }

    #[test]
    fn where_the_clock_is_changed_the_next_valid_instant_counts() {
        // 02:00 to 03:00 is left out on this night: it ends at 01:00 UTC.
        let spring = end("22:00-02:30", "2026-03-28T23:30:00Z", "Europe/Vienna");
        assert_eq!(spring, Some(at("2026-03-29T01:00:00Z")));
        // 02:00 to 03:00 comes twice on this night; the first 02:30 is at 00:30 UTC.
        let autumn = end("22:00-02:30", "2026-10-24T22:00:00Z", "Europe/Vienna");
        assert_eq!(autumn, Some(at("2026-10-25T00:30:00Z")));
        assert_eq!(end("22:00-02:30", "2026-10-25T01:10:00Z", "Europe/Vienna"), None);
    }

    #[test]
    fn quiet_hours_are_read_as_they_are_written() {
        let hours: QuietHours = "22:00-07:30".parse().unwrap();
        assert_eq!(hours.to_string(), "22:00-07:30");
        let json = serde_json::to_string(&hours).unwrap();
        assert_eq!(json, r#"{"from":"22:00","to":"07:30"}"#);
        assert_eq!(serde_json::from_str::<QuietHours>(&json).unwrap(), hours);
        for text in ["", "22:00", "22:00-22:00", "25:00-07:00", "x-y", "22:00-07:00-08:00"] {
            assert!(text.parse::<QuietHours>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_instant_is_shown_with_its_zone_and_unknown_zones_are_utc() {
        let noon = at("2026-07-01T12:00:00Z");
        assert_eq!(shown(noon, &zone(Some("Europe/Vienna"))), "2026-07-01 14:00 (Europe/Vienna)");
        assert_eq!(shown(noon, &zone(None)), "2026-07-01 12:00 (UTC)");
        assert_eq!(shown(noon, &zone(Some("Europe/Atlantis"))), "2026-07-01 12:00 (UTC)");
    }
}
