//! Conditions on metadata and on an event's own properties, joined by AND (S-13).
//!
//! The value of a condition says how a field is read: for a text every field counts as its text, for a boolean
//! as well (`true` and `"true"` are the same), for an integer a field counts if it is a number or a text of digits,
//! and then it is compared as a number. A field that is absent, `null`, an object or an array matches nothing,
//! not even NOT_EQUALS. REGEX is the dialect of the `regex` crate (no look-around, no back-references, time linear
//! in the text); it looks for the pattern anywhere in the text. Texts are ordered byte by byte.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use regex::{Regex, RegexBuilder};
use serde_json::value::RawValue;

use crate::event::Event;

/// What a compiled pattern may take, in bytes.
const MAX_REGEX_BYTES: usize = 1024 * 1024;

/// Conditions that must all hold; without any it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matcher {
    conditions: Vec<Condition>,
}

/// How a field is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// `=`
    Equals,
    /// `!=`
    NotEquals,
    /// `>`
    GreaterThan,
    /// `>=`
    GreaterThanEquals,
    /// `<`
    LowerThan,
    /// `<=`
    LowerThanEquals,
    /// Equal to one of a list.
    In,
    /// Equal to none of a list.
    NotIn,
    /// Holds a match of a regular expression.
    Regex,
}

/// A typed value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MatchScalar {
    /// A text.
    String(String),
    /// A whole number.
    Integer(i64),
    /// A boolean.
    Boolean(bool),
}

/// What a field is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MatchValue {
    /// One value.
    Scalar(MatchScalar),
    /// Several, for IN and NOT_IN.
    List(Vec<MatchScalar>),
}

/// Why a condition cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMatch {
    /// IN and NOT_IN take a list.
    #[error("Value must be an array for the operator {0}.")]
    NotAList(Operator),
    /// REGEX takes a text.
    #[error("Value must be a string for the regex operator.")]
    NotAString,
    /// The others take one value.
    #[error("Value must have a scalar type for the operator {0}.")]
    NotAScalar(Operator),
    /// An event has no such property.
    #[error("Unexpected field \"{0}\" given")]
    UnknownProperty(String),
    /// There is no such operator.
    #[error("there is no operator {0:?}")]
    UnknownOperator(String),
    /// The pattern is none, or too large.
    #[error("not a regular expression: {0}")]
    InvalidRegex(String),
}

/// One condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) field: Field,
    pub(crate) test: Test,
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Metadata(String),
    Property(Property),
}

/// A property of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Property {
    Id,
    Type,
    RecordedAt,
    Stream,
    Version,
}

/// Operator and value, checked together.
#[derive(Clone, Debug)]
pub(crate) enum Test {
    Compare(Operator, MatchScalar),
    OneOf { list: Vec<MatchScalar>, negated: bool },
    Regex(Regex),
}

/// A field as it was found.
enum Found<'a> {
    Text(std::borrow::Cow<'a, str>),
    /// As written.
    Number(&'a str),
    Boolean(bool),
}

impl Matcher {
    /// No condition.
    pub fn new() -> Self {
        Self::default()
    }

    /// With one more condition, on a top-level field of the metadata.
    pub fn metadata(
        self,
        field: impl Into<String>,
        operator: Operator,
        value: impl Into<MatchValue>,
    ) -> Result<Self, InvalidMatch> {
        let test = Test::new(operator, value.into())?;
        Ok(self.with(Field::Metadata(field.into()), test))
    }

    /// With one more condition, on a property of the event: `id`, `type`, `recorded_at`, `stream`, `version`, or what
    /// Prooph calls them (`uuid`, `event_name`, `message_name`, `messageName`, `created_at`, `createdAt`).
    /// `recorded_at` is compared as text like `2026-01-01T00:00:00.000000Z`, always with six decimals.
    pub fn property(
        self,
        property: &str,
        operator: Operator,
        value: impl Into<MatchValue>,
    ) -> Result<Self, InvalidMatch> {
        let property = match property {
            "id" | "uuid" => Property::Id,
            "type" | "event_name" | "message_name" | "messageName" => Property::Type,
            "recorded_at" | "created_at" | "createdAt" => Property::RecordedAt,
            "stream" => Property::Stream,
            "version" => Property::Version,
            _ => return Err(InvalidMatch::UnknownProperty(property.to_owned())),
        };
        let test = Test::new(operator, value.into())?;
        Ok(self.with(Field::Property(property), test))
    }

    fn with(mut self, field: Field, test: Test) -> Self {
        self.conditions.push(Condition { field, test });
        self
    }

    /// Whether all conditions hold for this event. What the database is asked never decides; this does.
    pub fn matches(&self, event: &Event) -> bool {
        if self.conditions.is_empty() {
            return true;
        }
        let of_metadata = |condition: &Condition| matches!(condition.field, Field::Metadata(_));
        let metadata: BTreeMap<String, &RawValue> = if self.conditions.iter().any(of_metadata) {
            serde_json::from_str(event.metadata.as_str()).unwrap_or_default()
        } else {
            BTreeMap::new()
        };
        self.conditions.iter().all(|condition| {
            let found = match &condition.field {
                Field::Metadata(field) => metadata.get(field).and_then(|value| Found::in_json(value.get())),
                Field::Property(property) => Some(Found::property(event, *property)),
            };
            found.is_some_and(|found| condition.test.holds(&found))
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.conditions.is_empty()
    }

    pub(crate) fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

impl Operator {
    const ALL: [(Self, &'static str, &'static str); 9] = [
        (Self::Equals, "EQUALS", "="),
        (Self::NotEquals, "NOT_EQUALS", "!="),
        (Self::GreaterThan, "GREATER_THAN", ">"),
        (Self::GreaterThanEquals, "GREATER_THAN_EQUALS", ">="),
        (Self::LowerThan, "LOWER_THAN", "<"),
        (Self::LowerThanEquals, "LOWER_THAN_EQUALS", "<="),
        (Self::In, "IN", "in"),
        (Self::NotIn, "NOT_IN", "nin"),
        (Self::Regex, "REGEX", "regex"),
    ];
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|known| known.0 == *self).map_or("", |known| known.1))
    }
}

/// By name (`EQUALS`) or by sign (`=`).
impl std::str::FromStr for Operator {
    type Err = InvalidMatch;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.iter().find(|known| known.1 == text || known.2 == text);
        known.map(|known| known.0).ok_or_else(|| InvalidMatch::UnknownOperator(text.to_owned()))
    }
}

impl Test {
    fn new(operator: Operator, value: MatchValue) -> Result<Self, InvalidMatch> {
        match (operator, value) {
            (Operator::In | Operator::NotIn, MatchValue::List(list)) => {
                Ok(Self::OneOf { list, negated: operator == Operator::NotIn })
            }
            (Operator::In | Operator::NotIn, MatchValue::Scalar(_)) => Err(InvalidMatch::NotAList(operator)),
            (Operator::Regex, MatchValue::Scalar(MatchScalar::String(pattern))) => {
                let regex = RegexBuilder::new(&pattern).size_limit(MAX_REGEX_BYTES).build();
                regex.map(Self::Regex).map_err(|error| InvalidMatch::InvalidRegex(error.to_string()))
            }
            (Operator::Regex, _) => Err(InvalidMatch::NotAString),
            (_, MatchValue::Scalar(value)) => Ok(Self::Compare(operator, value)),
            (_, MatchValue::List(_)) => Err(InvalidMatch::NotAScalar(operator)),
        }
    }

    fn holds(&self, found: &Found<'_>) -> bool {
        match self {
            Self::Compare(Operator::NotEquals, value) => found.compare(value) != Some(Ordering::Equal),
            Self::Compare(operator, value) => found.compare(value).is_some_and(|ordering| match operator {
                Operator::GreaterThan => ordering.is_gt(),
                Operator::GreaterThanEquals => ordering.is_ge(),
                Operator::LowerThan => ordering.is_lt(),
                Operator::LowerThanEquals => ordering.is_le(),
                _ => ordering.is_eq(),
            }),
            Self::OneOf { list, negated } => {
                *negated != list.iter().any(|value| found.compare(value) == Some(Ordering::Equal))
            }
            Self::Regex(regex) => regex.is_match(&found.text()),
        }
    }
}

/// Patterns are the same if their texts are.
impl PartialEq for Test {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Compare(a, x), Self::Compare(b, y)) => a == b && x == y,
            (Self::OneOf { list: a, negated: x }, Self::OneOf { list: b, negated: y }) => a == b && x == y,
            (Self::Regex(a), Self::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl Eq for Test {}

impl<'a> Found<'a> {
    /// A value that can be compared; none for `null`, objects and arrays.
    fn in_json(json: &'a str) -> Option<Self> {
        match json.as_bytes().first()? {
            b'"' => Some(Self::Text(serde_json::from_str::<String>(json).ok()?.into())),
            b't' => Some(Self::Boolean(true)),
            b'f' => Some(Self::Boolean(false)),
            b'-' | b'0'..=b'9' => Some(Self::Number(json)),
            _ => None,
        }
    }

    fn property(event: &'a Event, property: Property) -> Self {
        match property {
            Property::Id => Self::Text(event.id.to_string().into()),
            Property::Type => Self::Text(event.event_type.as_str().into()),
            Property::RecordedAt => Self::Text(event.recorded_at.to_fixed().into()),
            Property::Stream => Self::Text(event.stream.as_str().into()),
            Property::Version => Self::Text(event.version.to_string().into()),
        }
    }

    fn text(&self) -> std::borrow::Cow<'_, str> {
        match self {
            Self::Text(text) => text.as_ref().into(),
            Self::Number(text) => (*text).into(),
            Self::Boolean(true) => "true".into(),
            Self::Boolean(false) => "false".into(),
        }
    }

    /// How the field stands to the value; none if the two cannot be compared.
    fn compare(&self, value: &MatchScalar) -> Option<Ordering> {
        match value {
            MatchScalar::String(value) => Some(self.text().as_ref().cmp(value.as_str())),
            MatchScalar::Boolean(value) => {
                Some(self.text().as_ref().cmp(if *value { "true" } else { "false" }))
            }
            MatchScalar::Integer(value) => match self {
                Self::Number(number) => compare_number(number, *value),
                // A number in quotes is one as long as it is whole.
                Self::Text(text) => text.parse::<i64>().ok().map(|number| number.cmp(value)),
                Self::Boolean(_) => None,
            },
        }
    }
}

/// A number of JSON, however it is written, and an integer: exact for integers, with the precision of a double
/// for all others.
fn compare_number(number: &str, value: i64) -> Option<Ordering> {
    /// 2^63: the first double beyond every integer.
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    if let Ok(number) = number.parse::<i64>() {
        return Some(number.cmp(&value));
    }
    let number = number.parse::<f64>().ok()?;
    if number >= BEYOND {
        return Some(Ordering::Greater);
    }
    if number < -BEYOND {
        return Some(Ordering::Less);
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it is within the range, and the fraction comes next"
    )]
    let whole = number.trunc() as i64;
    Some(whole.cmp(&value).then(number.fract().partial_cmp(&0.0)?))
}

macro_rules! scalar_from {
    ($($from:ty => $variant:ident),+) => {
        $(
            impl From<$from> for MatchScalar {
                fn from(value: $from) -> Self {
                    Self::$variant(value.into())
                }
            }

            impl From<$from> for MatchValue {
                fn from(value: $from) -> Self {
                    Self::Scalar(value.into())
                }
            }
        )+
    };
}

scalar_from!(&str => String, String => String, i64 => Integer, bool => Boolean);

impl From<MatchScalar> for MatchValue {
    fn from(value: MatchScalar) -> Self {
        Self::Scalar(value)
    }
}

impl<T: Into<MatchScalar>> From<Vec<T>> for MatchValue {
    fn from(values: Vec<T>) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}

impl<T: Into<MatchScalar>, const N: usize> From<[T; N]> for MatchValue {
    fn from(values: [T; N]) -> Self {
        Self::List(values.into_iter().map(Into::into).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s13_value_checks_say_what_prooph_says() {
        let check = |operator, value: MatchValue| {
            Matcher::new().metadata("field", operator, value).unwrap_err().to_string()
        };
        assert_eq!(check(Operator::In, "a".into()), "Value must be an array for the operator IN.");
        assert_eq!(check(Operator::NotIn, 1.into()), "Value must be an array for the operator NOT_IN.");
        assert_eq!(check(Operator::Regex, 1.into()), "Value must be a string for the regex operator.");
        assert_eq!(check(Operator::Regex, ["a"].into()), "Value must be a string for the regex operator.");
        assert_eq!(
            check(Operator::Equals, ["a"].into()),
            "Value must have a scalar type for the operator EQUALS."
        );
        let error = Matcher::new().property("x", Operator::Equals, "a").unwrap_err().to_string();
        assert_eq!(error, "Unexpected field \"x\" given");
    }

    #[test]
    fn s13_operators_are_known_by_name_and_by_sign() {
        for (operator, name, sign) in Operator::ALL {
            assert_eq!((name.parse(), sign.parse()), (Ok(operator), Ok(operator)));
            assert_eq!(operator.to_string(), name);
        }
        assert!("equals".parse::<Operator>().is_err());
    }

    #[test]
    fn numbers_compare_exactly_at_the_edges() {
        let cases = [
            ("10", 10, Ordering::Equal),
            ("1e1", 10, Ordering::Equal),
            ("10.5", 10, Ordering::Greater),
            ("-10.5", -10, Ordering::Less),
            ("9", 10, Ordering::Less),
            ("9223372036854775808", i64::MAX, Ordering::Greater),
            ("-9223372036854775808", i64::MIN, Ordering::Equal),
            ("-9223372036854775809", i64::MIN, Ordering::Equal),
            ("1e400000", i64::MAX, Ordering::Greater),
            ("-1e400000", i64::MIN, Ordering::Less),
        ];
        for (number, value, ordering) in cases {
            assert_eq!(compare_number(number, value), Some(ordering), "{number} {value}");
        }
    }
}
