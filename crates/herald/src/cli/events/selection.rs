//! Which events a command is about: the flags that `events list` and `events tail` have in common.

use ::store::{Filter, Matcher, StreamName};
use clap::Args;

use super::condition::Condition;
use crate::exit::{Code, Exit};

#[derive(Debug, Args)]
pub(super) struct Selection {
    /// Only this stream; also $all, $category-NAME, $correlation-ID
    #[arg(long, value_name = "NAME")]
    stream: Option<StreamName>,
    /// Only streams of this category, the text before the first dash
    #[arg(long, value_name = "NAME", conflicts_with = "stream")]
    category: Option<String>,
    /// Only this type; may be given more than once
    #[arg(long = "type", value_name = "TYPE")]
    types: Vec<String>,
    /// Only what belongs to this
    #[arg(long, value_name = "TEXT")]
    correlation_id: Option<String>,
    /// Only where this holds, such as 'meta.tenant = acme'; may be given more than once, then all must hold
    #[arg(long = "where", value_name = "CONDITION", long_help = CONDITIONS)]
    conditions: Vec<Condition>,
}

const CONDITIONS: &str = "Only where this holds; may be given more than once, then all must hold

A condition is FIELD OPERATOR VALUE, such as 'meta.tenant = acme'.
  FIELD     meta.NAME: a top-level field of the metadata (meta.\"a b\" if need be);
            or type, stream, version, id, recorded_at of the event
  OPERATOR  = != > >= < <= in nin regex; or EQUALS NOT_EQUALS GREATER_THAN
            GREATER_THAN_EQUALS LOWER_THAN LOWER_THAN_EQUALS IN NOT_IN REGEX
  VALUE     42 and true compare as number and as boolean, all else as text, by its
            bytes, and so does \"42\" in quotes; in and nin take several:
            acme,umbrella or [\"a,b\",\"c\"]; regex looks anywhere in the text
A field that is missing, null, an object or an array matches nothing, not even !=.";

impl Selection {
    /// The one stream that it is about, if it is.
    pub(super) fn one_stream(&self) -> Option<StreamName> {
        self.stream.clone().filter(|stream| !stream.is_reserved())
    }

    pub(super) fn filter(self) -> Result<Filter, Exit> {
        let mut filter = match &self.stream {
            Some(name) => Filter::of(name).map_err(|error| Exit::new(Code::Usage, error.to_string()))?,
            None => Filter::all(),
        };
        if let Some(category) = self.category {
            filter = filter.category(category);
        }
        if !self.types.is_empty() {
            filter = filter.types(self.types);
        }
        if let Some(correlation_id) = self.correlation_id {
            if self.stream.is_some_and(|name| name.as_str().starts_with("$correlation-")) {
                return Err(Exit::new(Code::Usage, "--stream names a correlation already")
                    .with_hint("leave one of --stream and --correlation-id out"));
            }
            filter = filter.correlation_id(correlation_id);
        }
        let matcher = self.conditions.into_iter().try_fold(Matcher::new(), |matcher, condition| {
            condition.add_to(matcher).map_err(|error| Exit::new(Code::Usage, error.to_string()))
        })?;
        Ok(filter.matching(matcher))
    }
}
