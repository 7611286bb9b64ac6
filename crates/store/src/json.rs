//! JSON text that is known to be valid and to fit every database.
//!
//! Payloads are kept as they were written, byte for byte, and handed on unparsed; whoever wants a typed
//! value asks for it. Nothing here ever turns a payload into a tree of values.

mod fields;

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Arrays and objects may be nested this deep (S-24).
pub const MAX_JSON_DEPTH: usize = 64;

/// JSON text, byte for byte as written.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Box<str>);

/// Why a text cannot be stored as JSON.
#[derive(Debug, thiserror::Error)]
pub enum InvalidJson {
    /// Not JSON at all, or a value that cannot be written as JSON.
    #[error("not valid JSON")]
    Syntax(#[from] serde_json::Error),
    /// Nested deeper than [`MAX_JSON_DEPTH`].
    #[error("nested deeper than {MAX_JSON_DEPTH} levels")]
    TooDeep,
    /// A `\u0000` or half a surrogate pair, which PostgreSQL cannot hold.
    #[error("contains the escape {0}, which no database can hold as text")]
    Unstorable(String),
    /// Metadata must be an object.
    #[error("not a JSON object")]
    NotAnObject,
}

impl Json {
    /// Checks the text and keeps it unchanged.
    pub fn parse(text: impl Into<Box<str>>) -> Result<Self, InvalidJson> {
        let text = text.into();
        // The depth first: it bounds what the parser below has to recurse into.
        check_depth(&text)?;
        serde_json::from_str::<&RawValue>(&text)?;
        check_escapes(&text)?;
        Ok(Self(text))
    }

    /// The compact JSON text of a value.
    pub fn of(value: &impl Serialize) -> Result<Self, InvalidJson> {
        Self::parse(serde_json::to_string(value)?)
    }

    /// `{}`.
    pub fn empty_object() -> Self {
        Self("{}".into())
    }

    /// Takes text that was checked before it was stored.
    pub(crate) fn stored(text: String) -> Self {
        Self(text.into_boxed_str())
    }

    /// Takes text out of a row of the log, where only checked text was ever put. What plainly is no JSON is refused:
    /// it is looked at from both ends only, as parsing it would cost as much as reading it.
    pub(crate) fn from_row(text: &str) -> Result<Self, InvalidJson> {
        let (first, last) = (text.as_bytes().first(), text.as_bytes().last());
        if !matches!((first, last), (Some(b'{'), Some(b'}')) | (Some(b'['), Some(b']'))) {
            serde_json::from_str::<&RawValue>(text)?;
        }
        Ok(Self(text.into()))
    }

    /// The text as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads the text into a type of yours.
    pub fn to<T: DeserializeOwned>(&self) -> serde_json::Result<T> {
        serde_json::from_str(&self.0)
    }

    /// The first key that stands twice in the object, at its top level.
    pub(crate) fn repeated_key(&self) -> Option<String> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Option<String>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut seen, mut repeated) = (BTreeSet::new(), None);
                while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                    if repeated.is_none() && !seen.insert(key.clone()) {
                        repeated = Some(key);
                    }
                }
                Ok(repeated)
            }
        }
        serde_json::Deserializer::from_str(&self.0).deserialize_map(Keys).ok().flatten()
    }

    pub(crate) fn is_object(&self) -> bool {
        self.0.trim_start().starts_with('{')
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let raw: &RawValue = serde_json::from_str(&self.0).map_err(serde::ser::Error::custom)?;
        raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        Self::parse(raw.get()).map_err(serde::de::Error::custom)
    }
}

fn check_depth(text: &str) -> Result<(), InvalidJson> {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                if depth > MAX_JSON_DEPTH {
                    return Err(InvalidJson::TooDeep);
                }
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// In valid JSON a backslash stands in strings only, so escapes can be checked without parsing again.
fn check_escapes(text: &str) -> Result<(), InvalidJson> {
    let bytes = text.as_bytes();
    let unit = |at: usize| {
        let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut at = 0;
    while let Some(offset) = bytes[at..].iter().position(|byte| *byte == b'\\') {
        at += offset;
        let refused = |at: usize| InvalidJson::Unstorable(text[at..at + 6].to_owned());
        at += match unit(at) {
            Some(0) => return Err(refused(at)),
            Some(0xD800..=0xDBFF) => match unit(at + 6) {
                Some(0xDC00..=0xDFFF) => 12,
                _ => return Err(refused(at)),
            },
            Some(0xDC00..=0xDFFF) => return Err(refused(at)),
            Some(_) => 6,
            None => 2,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_every_byte() {
        let text = "{ \"b\":1,\n  \"a\" : [ 1.0, 1e3 ] }";
        assert_eq!(Json::parse(text).unwrap().as_str(), text);
    }

    #[test]
    fn s24_refuses_what_a_database_could_not_hold() {
        for text in [r#""\u0000""#, r#""\ud800""#, r#""\udc00""#, r#""\ud800\u0041""#, r#"{"\u0000":1}"#] {
            assert!(matches!(Json::parse(text), Err(InvalidJson::Unstorable(_))), "{text}");
        }
        for text in [r#""\\u0000""#, r#""\ud83d\ude00""#, r#""a\nb\u0041""#] {
            assert!(Json::parse(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn s24_depth_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(Json::parse(nested(MAX_JSON_DEPTH)).is_ok());
        assert!(matches!(Json::parse(nested(MAX_JSON_DEPTH + 1)), Err(InvalidJson::TooDeep)));
        assert!(Json::parse(r#""[[[[ not nesting""#).is_ok());
    }

    #[test]
    fn refuses_what_is_not_json() {
        for text in ["", "{", "nul", "{\"a\":}", "1 2"] {
            assert!(matches!(Json::parse(text), Err(InvalidJson::Syntax(_))), "{text}");
        }
    }
}
