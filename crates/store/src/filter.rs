//! Which events a reader wants: of one stream, one category, some types, one correlation, by metadata.
//!
//! Conditions are joined by AND. A filter knows nothing of SQL (that is `read/query.rs`) and can say of any event
//! whether it is wanted; what the database does to find events quickly never changes that answer.

mod matcher;
mod written;

pub(crate) use self::matcher::{Condition, Field, Property, Test};
pub use self::matcher::{InvalidMatch, MatchScalar, MatchValue, Matcher, Operator};

use crate::event::Event;
use crate::stream_name::StreamName;

/// Which events. All conditions must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub(crate) stream: Option<StreamName>,
    pub(crate) category: Option<String>,
    pub(crate) types: Option<Vec<String>>,
    pub(crate) correlation_id: Option<String>,
    pub(crate) matcher: Matcher,
}

/// The name is one of the log's own, but none that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no special stream {0}; there are $all, $category-NAME and $correlation-ID")]
pub struct UnknownSpecialStream(StreamName);

impl Filter {
    /// Everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// What a stream's name stands for: the stream itself, `$all`, `$category-NAME` or `$correlation-ID` (S-14).
    pub fn of(name: &StreamName) -> Result<Self, UnknownSpecialStream> {
        let text = name.as_str();
        if !name.is_reserved() {
            return Ok(Self::all().stream(name.clone()));
        }
        if text == "$all" {
            return Ok(Self::all());
        }
        if let Some(category) = text.strip_prefix("$category-") {
            return Ok(Self::all().category(category));
        }
        if let Some(correlation_id) = text.strip_prefix("$correlation-") {
            return Ok(Self::all().correlation_id(correlation_id));
        }
        Err(UnknownSpecialStream(name.clone()))
    }

    /// Only this stream.
    #[must_use]
    pub fn stream(mut self, stream: StreamName) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Only streams of this category: `user` is the category of `user-a-b`, never of `users-1`.
    #[must_use]
    pub fn category(mut self, category: impl Into<String>) -> Self {
        self.category = Some(category.into());
        self
    }

    /// Only these types; an empty list matches nothing.
    #[must_use]
    pub fn types(mut self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.types = Some(types.into_iter().map(Into::into).collect());
        self
    }

    /// Of the types that are wanted already, only these.
    #[must_use]
    pub fn only_types(self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let Some(wanted) = &self.types else { return self.types(types) };
        let types: Vec<String> =
            types.into_iter().map(Into::into).filter(|name| wanted.contains(name)).collect();
        self.types(types)
    }

    /// Only what belongs to this correlation.
    #[must_use]
    pub fn correlation_id(mut self, correlation_id: impl Into<String>) -> Self {
        self.correlation_id = Some(correlation_id.into());
        self
    }

    /// Only what this matcher matches, in place of an earlier matcher.
    #[must_use]
    pub fn matching(mut self, matcher: Matcher) -> Self {
        self.matcher = matcher;
        self
    }

    /// Whether this event is wanted.
    pub fn matches(&self, event: &Event) -> bool {
        self.stream.as_ref().is_none_or(|stream| *stream == event.stream)
            && self.category.as_ref().is_none_or(|category| category == event.stream.category())
            && self.types.as_ref().is_none_or(|types| types.contains(&event.event_type))
            && (self.correlation_id.is_none() || self.correlation_id == event.correlation_id)
            && self.matcher.matches(event)
    }

    pub(crate) fn is_all(&self) -> bool {
        *self == Self::all()
    }

    /// Whether it is plain that nothing can be wanted.
    pub(crate) fn is_nothing(&self) -> bool {
        self.types.as_ref().is_some_and(Vec::is_empty)
            || self
                .stream
                .as_ref()
                .zip(self.category.as_ref())
                .is_some_and(|(stream, category)| stream.category() != category)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_can_be_narrowed_and_not_widened() {
        assert_eq!(Filter::all().only_types(["A"]), Filter::all().types(["A"]));
        assert_eq!(Filter::all().types(["A", "B"]).only_types(["B", "C"]), Filter::all().types(["B"]));
        assert!(Filter::all().types(["A"]).only_types(["B"]).is_nothing());
    }

    #[test]
    fn s14_special_names_stand_for_filters() {
        let of = |name: &str| Filter::of(&StreamName::new(name).unwrap());
        assert_eq!(of("$all"), Ok(Filter::all()));
        assert_eq!(of("$category-user"), Ok(Filter::all().category("user")));
        assert_eq!(of("$correlation-order-7"), Ok(Filter::all().correlation_id("order-7")));
        assert_eq!(of("user-1"), Ok(Filter::all().stream(StreamName::new("user-1").unwrap())));
        let error = of("$al").unwrap_err().to_string();
        assert_eq!(
            error,
            "there is no special stream $al; there are $all, $category-NAME and $correlation-ID"
        );
    }
}
