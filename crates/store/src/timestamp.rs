//! Instants: UTC, microseconds, one type for rows, payloads and people.
//!
//! PostgreSQL keeps them as `TIMESTAMPTZ`, SQLite as text of fixed width that sorts like time. Instants
//! are never used for order: positions are.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, PgValueFormat, PgValueRef};
use sqlx::sqlite::{SqliteArgumentsBuffer, SqliteTypeInfo, SqliteValueRef};
use sqlx::{Decode, Encode, Postgres, Sqlite, Type};

/// An instant in UTC, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// The text is not an RFC 3339 instant between the years 0 and 9999.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not an instant before 9999-12-30T22:00:00Z; write it like 2026-01-01T00:00:00Z")]
pub struct InvalidTimestamp {
    text: String,
}

/// PostgreSQL counts its microseconds from 2000-01-01.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;
/// The object id of `timestamptz`, fixed in every PostgreSQL.
const TIMESTAMPTZ: Oid = Oid(1184);

impl Timestamp {
    /// The instant that many microseconds after 1970.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 1970.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// What the clock of this machine says. Behaviour that depends on time takes a [`crate::Clock`].
    pub(crate) fn system() -> Self {
        let micros = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_micros()).unwrap_or(i64::MAX),
        };
        Self(micros)
    }

    /// This instant moved later; saturates at the end of time.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    fn civil(self) -> Result<jiff::Timestamp, jiff::Error> {
        jiff::Timestamp::from_microsecond(self.0)
    }

    /// `2026-01-01 00:00:00.000000`: the form of SQLite columns, as wide for every instant.
    pub(crate) fn to_column(self) -> Result<String, jiff::Error> {
        Ok(self.civil()?.strftime("%Y-%m-%d %H:%M:%S.%6f").to_string())
    }

    /// `2026-01-01T00:00:00.000000Z`: RFC 3339, as wide for every instant.
    pub(crate) fn to_fixed(self) -> String {
        match self.civil() {
            Ok(instant) => instant.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
            Err(_) => self.to_string(),
        }
    }

    pub(crate) fn from_column(text: &str) -> Result<Self, BoxDynError> {
        let civil: jiff::civil::DateTime = text.parse()?;
        Ok(Self(civil.to_zoned(jiff::tz::TimeZone::UTC)?.timestamp().as_microsecond()))
    }
}

/// RFC 3339 in UTC with as many decimals as are needed: `2026-01-01T00:00:00Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.civil() {
            Ok(instant) => write!(f, "{instant}"),
            Err(_) => write!(f, "{} µs", self.0),
        }
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTimestamp;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let instant: jiff::Timestamp =
            text.parse().map_err(|_| InvalidTimestamp { text: text.to_owned() })?;
        Ok(Self(instant.as_microsecond()))
    }
}

/// As wide for every instant: `2026-01-01T00:00:00.000000Z`.
impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_fixed())
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(TIMESTAMPTZ)
    }
}

impl Encode<'_, Postgres> for Timestamp {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Postgres>::encode(self.0 - POSTGRES_EPOCH_US, buffer)
    }

    fn size_hint(&self) -> usize {
        size_of::<i64>()
    }
}

impl<'r> Decode<'r, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        match value.format() {
            // Its two infinities are the ends of the range.
            PgValueFormat::Binary => match <i64 as Decode<Postgres>>::decode(value)? {
                i64::MIN => Err("-infinity is no instant".into()),
                micros => micros
                    .checked_add(POSTGRES_EPOCH_US)
                    .map(Self)
                    .ok_or_else(|| "infinity is no instant".into()),
            },
            PgValueFormat::Text => Ok(Self(value.as_str()?.parse::<jiff::Timestamp>()?.as_microsecond())),
        }
    }
}

impl Type<Sqlite> for Timestamp {
    fn type_info() -> SqliteTypeInfo {
        <String as Type<Sqlite>>::type_info()
    }

    /// A column declared `TIMESTAMPTZ` holds our text; SQLite does not mind and neither do we.
    fn compatible(_: &SqliteTypeInfo) -> bool {
        true
    }
}

impl Encode<'_, Sqlite> for Timestamp {
    fn encode_by_ref(&self, buffer: &mut SqliteArgumentsBuffer) -> Result<IsNull, BoxDynError> {
        Encode::<Sqlite>::encode(self.to_column()?, buffer)
    }
}

impl<'r> Decode<'r, Sqlite> for Timestamp {
    fn decode(value: SqliteValueRef<'r>) -> Result<Self, BoxDynError> {
        Self::from_column(&<String as Decode<Sqlite>>::decode(value)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_columns_round_trip() {
        for text in ["2026-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z", "2026-11-22T10:00:00.5Z"] {
            let instant: Timestamp = text.parse().unwrap();
            assert_eq!(instant.to_string(), text);
            assert_eq!(Timestamp::from_column(&instant.to_column().unwrap()).unwrap(), instant);
        }
    }

    #[test]
    fn column_text_sorts_like_time() {
        let texts: Vec<String> = [-1, 0, 1, 999_999, 1_000_000, 1_800_000_000_000_000]
            .into_iter()
            .map(|micros| Timestamp::from_micros(micros).to_column().unwrap())
            .collect();
        assert!(texts.is_sorted());
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        let error = "tomorrow".parse::<Timestamp>().unwrap_err();
        assert!(error.to_string().contains("2026-01-01T00:00:00Z"));
    }
}
