//! What a subscription was set up as: the part of a definition that decides what its subscriber makes of the log.
//!
//! It is compared with the code whenever somebody looks, so that a change without a new id and without a replay is
//! reported until a person accepts it (E-41). It names nothing of Rust: moving or renaming code changes nothing here.
//! What the row says in columns of its own (group, run mode, tables to drop) is not repeated, and what only says how
//! failures are dealt with is not part of it.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::engine::{Criteria, Engine, EngineError};
use crate::records;
use crate::steer::changes_of_code;
use crate::subscriber::Definition;

/// A definition as it is written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefinitionRecord(String);

impl DefinitionRecord {
    /// The record of a definition.
    pub fn of(definition: &Definition) -> Self {
        let record = json!({
            "version": definition.version,
            "kind": definition.kind.word(),
            "wants": definition.filter.written(),
            "emits": definition.emission.word(),
        });
        Self(record.to_string())
    }

    pub(crate) fn stored(text: String) -> Self {
        Self(text)
    }

    /// The record as text: JSON.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is different in this one, in words.
    pub(crate) fn differences_from(&self, before: &Self) -> Vec<String> {
        if self == before {
            return Vec::new();
        }
        let (Some(was), Some(is)) = (before.fields(), self.fields()) else {
            return vec!["the definition was written in another form".to_owned()];
        };
        let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
        names.into_iter().filter_map(|name| difference(name, was.get(name), is.get(name))).collect()
    }

    fn fields(&self) -> Option<Map<String, Value>> {
        serde_json::from_str(&self.0).ok()
    }
}

fn difference(name: &str, was: Option<&Value>, is: Option<&Value>) -> Option<String> {
    let text = |value: Option<&Value>| value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    let what = match name {
        "version" => "the author's version",
        "kind" => "the kind",
        "wants" => "what it wants",
        "emits" => "when it emits",
        name => name,
    };
    (was != is).then(|| format!("{what} was {}, is {}", text(was), text(is)))
}

impl Engine {
    /// Writes down of each subscription that meets the criteria what it was set up as, where no earlier program did;
    /// and says in the log whose code has changed since.
    pub(crate) async fn compare_definitions(&self, criteria: &Criteria) -> Result<(), EngineError> {
        for subscription in self.select(criteria).await? {
            let id = &subscription.id;
            let Some(registered) = self.registered(id) else { continue };
            if subscription.definition.is_none() {
                let record = DefinitionRecord::of(&registered.definition);
                records::keep_definition(self.store().database(), id, &record).await?;
            }
            let changes = changes_of_code(&registered.definition, &subscription);
            if !changes.is_empty() {
                tracing::warn!(
                    subscription = id,
                    "the code of {id} has changed since it was set up: {}; replay it, give it a new id, or accept the \
                     change with `herald sub refresh {id} --accept-definition`",
                    changes.join("; ")
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use store::{Filter, Matcher, Operator};

    use super::*;
    use crate::retry::RetryStrategy;

    fn record(definition: &Definition) -> DefinitionRecord {
        DefinitionRecord::of(definition)
    }

    /// Stored rows are compared with this text: it may get new fields, and none may be written otherwise.
    #[test]
    fn e41_a_definition_is_written_like_this() {
        let matcher = Matcher::new().metadata("by", Operator::Equals, "me").unwrap();
        let filter = Filter::all().category("order").types(["B", "A", "B"]).matching(matcher);
        let definition = Definition::projector("a").within(filter).with_version(3);
        assert_eq!(
            record(&definition).as_str(),
            r#"{"version":3,"kind":"projector","wants":{"category":"order","types":["A","B"],"matching":["metadata by EQUALS \"me\""]},"emits":"when_active"}"#
        );
        assert_eq!(
            record(&Definition::processor("b")).as_str(),
            r#"{"version":1,"kind":"processor","wants":{},"emits":"when_active"}"#
        );
    }

    #[test]
    fn e41_what_only_says_how_failures_are_dealt_with_is_no_change() {
        let definition = Definition::projector("a").on(["A", "B"]);
        let patient = definition.clone().with_retry(RetryStrategy::None).in_group("other").on(["B", "A"]);
        assert_eq!(record(&definition), record(&patient));
    }

    #[test]
    fn e41_a_difference_is_told_in_words() {
        let was = record(&Definition::projector("a").on(["A"]));
        let is = record(&Definition::projector("a").on(["A", "B"]).with_version(2));
        assert_eq!(
            is.differences_from(&was),
            [
                r#"the author's version was 1, is 2"#,
                r#"what it wants was {"types":["A"]}, is {"types":["A","B"]}"#
            ]
        );
        let old = DefinitionRecord::stored("v0".to_owned());
        assert_eq!(is.differences_from(&old), ["the definition was written in another form"]);
    }
}
