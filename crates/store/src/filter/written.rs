//! A filter as people and rows write it: JSON in which the same wish always looks the same.

use serde_json::{Map, Value};

use super::{Filter, MatchScalar, Matcher};
use crate::filter::matcher::{Condition, Field, Property, Test};

impl Filter {
    /// What is wanted, as a JSON object: `{}` is everything. Lists in which the order means nothing are sorted.
    pub fn written(&self) -> Value {
        let mut written = Map::new();
        let mut say = |name: &str, value: Value| drop(written.insert(name.to_owned(), value));
        if let Some(stream) = &self.stream {
            say("stream", stream.as_str().into());
        }
        if let Some(category) = &self.category {
            say("category", category.as_str().into());
        }
        if let Some(types) = &self.types {
            say("types", sorted(types.clone()).into());
        }
        if let Some(correlation_id) = &self.correlation_id {
            say("correlation_id", correlation_id.as_str().into());
        }
        if !self.matcher.is_empty() {
            say("matching", self.matcher.written().into());
        }
        Value::Object(written)
    }
}

impl Matcher {
    fn written(&self) -> Vec<String> {
        sorted(self.conditions().iter().map(Condition::written).collect())
    }
}

impl Condition {
    fn written(&self) -> String {
        let field = match &self.field {
            Field::Metadata(field) => format!("metadata {field}"),
            Field::Property(property) => format!("property {}", property.word()),
        };
        let scalar = |value: &MatchScalar| match value {
            MatchScalar::String(text) => Value::from(text.as_str()),
            MatchScalar::Integer(number) => (*number).into(),
            MatchScalar::Boolean(truth) => (*truth).into(),
        };
        match &self.test {
            Test::Compare(operator, value) => format!("{field} {operator} {}", scalar(value)),
            Test::OneOf { list, negated } => {
                let list = sorted(list.iter().map(|value| scalar(value).to_string()).collect());
                format!("{field} {} [{}]", if *negated { "NOT_IN" } else { "IN" }, list.join(","))
            }
            Test::Regex(regex) => format!("{field} REGEX {}", Value::from(regex.as_str())),
        }
    }
}

impl Property {
    fn word(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Type => "type",
            Self::RecordedAt => "recorded_at",
            Self::Stream => "stream",
            Self::Version => "version",
        }
    }
}

fn sorted(mut list: Vec<String>) -> Vec<String> {
    list.sort();
    list.dedup();
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{MatchValue, Operator};
    use crate::stream_name::StreamName;

    #[test]
    fn s13_the_same_wish_is_written_the_same() {
        let list = |numbers: &[i64]| {
            MatchValue::List(numbers.iter().map(|number| MatchScalar::Integer(*number)).collect())
        };
        let one = Matcher::new()
            .metadata("n", Operator::In, list(&[2, 1]))
            .and_then(|matcher| matcher.property("created_at", Operator::Regex, "^2026".to_owned()));
        let other = Matcher::new()
            .property("recorded_at", Operator::Regex, "^2026".to_owned())
            .and_then(|matcher| matcher.metadata("n", Operator::In, list(&[1, 2, 2])));
        let filter = |matcher| {
            Filter::all().stream(StreamName::new("a-1").unwrap()).correlation_id("c").matching(matcher)
        };
        let written = filter(one.unwrap()).written();
        assert_eq!(written, filter(other.unwrap()).written());
        assert_eq!(
            written.to_string(),
            r#"{"stream":"a-1","correlation_id":"c","matching":["metadata n IN [1,2]","property recorded_at REGEX \"^2026\""]}"#
        );
        assert_eq!(Filter::all().written().to_string(), "{}");
    }
}
