//! Names of streams: checked once, then carried as a type.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name, in bytes (S-02).
const MAX_BYTES: usize = 255;

/// The name of a stream: 1 to 255 bytes, no control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StreamName(String);

/// Why a text is no stream name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStreamName {
    /// Nothing at all.
    #[error("a stream name must not be empty")]
    Empty,
    /// More than 255 bytes.
    #[error("a stream name has at most {MAX_BYTES} bytes, this one has {0}")]
    TooLong(usize),
    /// A control character such as a newline.
    #[error("the stream name {0:?} contains a control character")]
    ControlCharacter(String),
}

impl StreamName {
    /// Checks the text.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidStreamName> {
        let name = name.into();
        if name.is_empty() {
            return Err(InvalidStreamName::Empty);
        }
        if name.len() > MAX_BYTES {
            return Err(InvalidStreamName::TooLong(name.len()));
        }
        if name.chars().any(char::is_control) {
            return Err(InvalidStreamName::ControlCharacter(name));
        }
        Ok(Self(name))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text before the first `-`, or the whole name: `user-a-b` is in `user`.
    pub fn category(&self) -> &str {
        self.0.split('-').next().unwrap_or(&self.0)
    }

    /// Whether the name is one of the log's own (`$…`), to which nobody else may append.
    pub fn is_reserved(&self) -> bool {
        self.0.starts_with('$')
    }
}

impl fmt::Display for StreamName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for StreamName {
    type Err = InvalidStreamName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl TryFrom<String> for StreamName {
    type Error = InvalidStreamName;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        Self::new(name)
    }
}

impl From<StreamName> for String {
    fn from(name: StreamName) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s02_category_is_the_text_before_the_first_dash() {
        for (name, category) in [("user-a-b", "user"), ("users-1", "users"), ("plain", "plain"), ("-x", "")] {
            assert_eq!(StreamName::new(name).unwrap().category(), category);
        }
    }

    #[test]
    fn s02_limits() {
        assert!(StreamName::new("ü".repeat(127) + "a").is_ok());
        assert_eq!(StreamName::new("ü".repeat(128)), Err(InvalidStreamName::TooLong(256)));
        assert_eq!(StreamName::new(""), Err(InvalidStreamName::Empty));
        assert!(matches!(StreamName::new("user-a\nb"), Err(InvalidStreamName::ControlCharacter(_))));
        assert!(StreamName::new("$x").unwrap().is_reserved());
    }
}
