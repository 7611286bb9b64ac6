//! A condition on events as people write it: `meta.tenant = acme`, `version >= 3`, `type regex ^Acme\.`.

use std::str::FromStr;

use ::store::{InvalidMatch, MatchScalar, MatchValue, Matcher, Operator};

/// Field, operator and value, read but not yet checked against each other.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    field: Field,
    operator: Operator,
    value: MatchValue,
}

#[derive(Clone, Debug)]
enum Field {
    Metadata(String),
    Property(String),
}

/// Why a text is no condition.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidCondition {
    #[error("a condition is FIELD OPERATOR VALUE, such as 'meta.tenant = acme'; {0}")]
    Shape(&'static str),
    #[error(
        "there is no field {0:?}; write meta.NAME for a field of the metadata, or one of type, stream, version, id, \
         recorded_at"
    )]
    Field(String),
    #[error("{0}; there are = != > >= < <= in nin regex")]
    Operator(InvalidMatch),
    #[error("what begins with a quote or a bracket must be JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("a value in the list is an object or an array, or null, which equals nothing")]
    NoScalar,
}

const PROPERTIES: [&str; 5] = ["type", "stream", "version", "id", "recorded_at"];
/// In this order: the longer ones first.
const SIGNS: [&str; 6] = ["!=", ">=", "<=", "=", ">", "<"];

impl Condition {
    /// The matcher with this condition, if operator and value fit.
    pub(super) fn add_to(self, matcher: Matcher) -> Result<Matcher, InvalidMatch> {
        match self.field {
            Field::Metadata(name) => matcher.metadata(name, self.operator, self.value),
            Field::Property(name) => matcher.property(&name, self.operator, self.value),
        }
    }
}

impl FromStr for Condition {
    type Err = InvalidCondition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (field, rest) = field(text.trim())?;
        let (operator, rest) = operator(rest.trim_start())?;
        let value = value(operator, rest.trim_start())?;
        Ok(Self { field, operator, value })
    }
}

/// The field at the beginning, and what follows it.
fn field(text: &str) -> Result<(Field, &str), InvalidCondition> {
    if let Some(quoted) = text.strip_prefix("meta.").filter(|name| name.starts_with('"')) {
        let mut strings = serde_json::Deserializer::from_str(quoted).into_iter::<String>();
        let name = strings.next().transpose()?.unwrap_or_default();
        return Ok((Field::Metadata(name), &quoted[strings.byte_offset()..]));
    }
    let ends = |c: char| c.is_whitespace() || matches!(c, '=' | '!' | '<' | '>');
    let (name, rest) = text.split_at(text.find(ends).unwrap_or(text.len()));
    match name.strip_prefix("meta.") {
        Some("") => Err(InvalidCondition::Shape("the name of the metadata's field is missing")),
        Some(name) => Ok((Field::Metadata(name.to_owned()), rest)),
        None if name.is_empty() => Err(InvalidCondition::Shape("the field is missing")),
        None if PROPERTIES.contains(&name) => Ok((Field::Property(name.to_owned()), rest)),
        None => Err(InvalidCondition::Field(name.to_owned())),
    }
}

/// The operator at the beginning, and what follows it.
fn operator(text: &str) -> Result<(Operator, &str), InvalidCondition> {
    if text.is_empty() {
        return Err(InvalidCondition::Shape("operator and value are missing"));
    }
    let sign = SIGNS.iter().find_map(|sign| text.strip_prefix(sign).map(|rest| (*sign, rest)));
    let (word, rest) =
        sign.unwrap_or_else(|| text.split_at(text.find(char::is_whitespace).unwrap_or(text.len())));
    Ok((word.parse().map_err(InvalidCondition::Operator)?, rest))
}

fn value(operator: Operator, text: &str) -> Result<MatchValue, InvalidCondition> {
    if text.is_empty() {
        return Err(InvalidCondition::Shape("the value is missing (\"\" is the empty text)"));
    }
    match operator {
        Operator::In | Operator::NotIn if text.starts_with('[') => {
            let values: Vec<serde_json::Value> = serde_json::from_str(text)?;
            Ok(MatchValue::List(values.into_iter().map(from_json).collect::<Result<_, _>>()?))
        }
        Operator::In | Operator::NotIn => {
            Ok(MatchValue::List(text.split(',').map(|item| scalar(item.trim())).collect::<Result<_, _>>()?))
        }
        // A pattern is a text, whatever it looks like.
        Operator::Regex if !text.starts_with('"') => Ok(text.into()),
        _ => Ok(scalar(text)?.into()),
    }
}

fn scalar(text: &str) -> Result<MatchScalar, InvalidCondition> {
    if text.starts_with('"') {
        return Ok(serde_json::from_str::<String>(text)?.into());
    }
    Ok(match (text.parse::<i64>(), text.parse::<bool>()) {
        (Ok(number), _) => number.into(),
        (_, Ok(boolean)) => boolean.into(),
        _ => text.into(),
    })
}

fn from_json(value: serde_json::Value) -> Result<MatchScalar, InvalidCondition> {
    match value {
        serde_json::Value::String(text) => Ok(text.into()),
        serde_json::Value::Bool(boolean) => Ok(boolean.into()),
        // A number that is no whole one is compared by its text.
        serde_json::Value::Number(number) => {
            Ok(number.as_i64().map_or_else(|| number.to_string().into(), Into::into))
        }
        _ => Err(InvalidCondition::NoScalar),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matcher(text: &str) -> Result<Matcher, String> {
        let condition: Condition = text.parse().map_err(|error: InvalidCondition| error.to_string())?;
        condition.add_to(Matcher::new()).map_err(|error| error.to_string())
    }

    #[test]
    fn s13_conditions_mean_what_they_say() {
        let meta = |field: &str, operator, value: MatchValue| Matcher::new().metadata(field, operator, value);
        let property =
            |field: &str, operator, value: MatchValue| Matcher::new().property(field, operator, value);
        for (text, wanted) in [
            ("meta.tenant = acme", meta("tenant", Operator::Equals, "acme".into())),
            ("meta.tenant=acme", meta("tenant", Operator::Equals, "acme".into())),
            ("meta.tenant EQUALS acme corp", meta("tenant", Operator::Equals, "acme corp".into())),
            ("meta.n != 10", meta("n", Operator::NotEquals, 10.into())),
            ("meta.n != \"10\"", meta("n", Operator::NotEquals, "10".into())),
            ("meta.n>=-3", meta("n", Operator::GreaterThanEquals, (-3).into())),
            ("meta.n > 3", meta("n", Operator::GreaterThan, 3.into())),
            ("meta.n <= 3", meta("n", Operator::LowerThanEquals, 3.into())),
            ("meta.n<3", meta("n", Operator::LowerThan, 3.into())),
            ("meta.ok = true", meta("ok", Operator::Equals, true.into())),
            ("meta.t in acme, 7 ,\"x\"", {
                let list = vec!["acme".into(), 7.into(), "x".into()];
                meta("t", Operator::In, MatchValue::List(list))
            }),
            ("meta.t nin [\"a,b\", 1, false]", {
                let list = vec!["a,b".into(), 1.into(), false.into()];
                meta("t", Operator::NotIn, MatchValue::List(list))
            }),
            ("meta.\"a b=\\\"c\" regex ^1+$", meta("a b=\"c", Operator::Regex, "^1+$".into())),
            ("type regex 10", property("type", Operator::Regex, "10".into())),
            ("version >= 3", property("version", Operator::GreaterThanEquals, 3.into())),
            ("recorded_at > 2026-01-01", property("recorded_at", Operator::GreaterThan, "2026-01-01".into())),
            ("meta.x = \"\"", meta("x", Operator::Equals, "".into())),
        ] {
            assert_eq!(matcher(text), wanted.map_err(|error| error.to_string()), "{text}");
        }
    }

    #[test]
    fn s13_what_is_no_condition_is_explained() {
        for (text, says) in [
            ("", "the field is missing"),
            ("meta. = 1", "name of the metadata's field is missing"),
            ("tenant = acme", "there is no field \"tenant\"; write meta.NAME"),
            ("meta.tenant", "operator and value are missing"),
            ("meta.tenant ~ acme", "there is no operator \"~\"; there are"),
            ("meta.tenant =", "the value is missing"),
            ("meta.tenant = \"acme", "must be JSON"),
            ("meta.\"tenant = 1", "must be JSON"),
            ("meta.t in [1", "must be JSON"),
            ("meta.t in [null]", "equals nothing"),
            ("meta.t regex (", "not a regular expression"),
        ] {
            let error = matcher(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
