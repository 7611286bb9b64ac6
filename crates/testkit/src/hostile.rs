//! Hostile input for the log (S-24): what a fuzzer or a random generator makes up, the same for both.
//!
//! An input is a list of fields between bytes that no text contains, so that a fuzzer can grow each of them, and
//! what is found can be kept as a file.

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use store::{InvalidJson, InvalidStreamName, Json, MAX_JSON_DEPTH, NewEvent, StreamName};

use crate::random::Random;

/// Stands between two fields; no UTF-8 text has it.
const SEPARATOR: u8 = 0xff;
/// What is likely to hurt somewhere: in JSON, in SQL, in a name, in a terminal.
const TOKENS: [&str; 38] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    ":",
    ",",
    "{\"a\":",
    "[[[[[[[[[[[[[[[[",
    "]]]]]]]]]]]]]]]]",
    "\\u0000",
    "\\ud800",
    "\\udc00",
    "\\ud83d\\ude00",
    "\\u00e9",
    "\u{0}",
    "\u{7f}",
    "\u{85}",
    "\n",
    "\u{feff}",
    "\u{202e}",
    "\u{10ffff}",
    "💌",
    "e\u{301}",
    "é",
    "'",
    "''",
    "\";--",
    "$",
    "$all",
    "-",
    "1e999",
    "-0",
    "1e400000",
    "0.10",
    "null",
    " \t\r\n",
];

/// What somebody wants to append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hostile {
    /// The stream's name, perhaps.
    pub stream: String,
    /// The event's type, perhaps.
    pub event_type: String,
    /// The payload, perhaps.
    pub payload: String,
    /// The metadata, perhaps.
    pub metadata: String,
    /// The correlation id, perhaps.
    pub correlation_id: Option<String>,
}

/// Why an input is not even a [`NewEvent`].
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The name is none.
    #[error(transparent)]
    Stream(#[from] InvalidStreamName),
    /// A text is not JSON, or none that can be stored.
    #[error(transparent)]
    Json(#[from] InvalidJson),
}

impl Hostile {
    /// Takes the fields apart: stream, type, payload, metadata, correlation id. What is missing is something harmless.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let mut fields =
            bytes.split(|byte| *byte == SEPARATOR).map(|field| String::from_utf8_lossy(field).into_owned());
        Self {
            stream: fields.next().unwrap_or_default(),
            event_type: fields.next().unwrap_or_else(|| "Acme.Test:Happened".to_owned()),
            payload: fields.next().unwrap_or_else(|| "null".to_owned()),
            metadata: fields.next().unwrap_or_else(|| "{}".to_owned()),
            correlation_id: fields.next(),
        }
    }

    /// What [`Hostile::from_bytes`] takes apart.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut fields = vec![&self.stream, &self.event_type, &self.payload, &self.metadata];
        fields.extend(&self.correlation_id);
        fields.iter().map(|field| field.as_bytes()).collect::<Vec<_>>().join(&SEPARATOR)
    }

    /// Changes one to four things about the bytes of an input.
    pub fn mutated(bytes: &[u8], random: &mut Random) -> Self {
        let mut bytes = bytes.to_vec();
        for _ in 0..=random.below(4) {
            let mut place = |length: usize| usize::try_from(random.below(length as u64 + 1)).unwrap_or(0);
            let at = place(bytes.len());
            let to = at + place((bytes.len() - at).min(8));
            let token = TOKENS[place(TOKENS.len() - 1)].as_bytes();
            match place(4) {
                0 => drop(bytes.drain(at..to)),
                1 => drop(bytes.splice(at..to, token.iter().copied())),
                2 => {
                    let again = bytes[at..to].repeat(1 + place(40));
                    bytes.splice(at..at, again);
                }
                3 if at < bytes.len() => bytes[at] ^= 1 << place(7),
                _ => drop(bytes.splice(at..at, token.iter().copied())),
            }
        }
        Self::from_bytes(&bytes)
    }

    /// What would be appended, under a fresh id; limits of size are still to be checked by the log.
    pub fn event(&self) -> Result<(StreamName, NewEvent), Refused> {
        let stream = StreamName::new(self.stream.clone())?;
        let mut event = NewEvent::new(self.event_type.clone(), Json::parse(self.payload.clone())?);
        event.metadata = Json::parse(self.metadata.clone())?;
        event.correlation_id.clone_from(&self.correlation_id);
        Ok((stream, event))
    }
}

/// Says what is wrong with JSON that the log took: found by another way than the log's own.
pub fn why_not_storable(json: &str) -> Option<String> {
    check(json, 0).err()
}

/// Parses level by level, so that numbers of any size pass and each text is really unescaped.
fn check(json: &str, depth: usize) -> Result<(), String> {
    let within = |depth: usize| {
        (depth <= MAX_JSON_DEPTH)
            .then_some(depth)
            .ok_or_else(|| format!("nested deeper than {MAX_JSON_DEPTH}"))
    };
    let broken = |error: serde_json::Error| format!("{json:?}: {error}");
    match json.trim_start_matches([' ', '\t', '\r', '\n']).as_bytes().first() {
        Some(b'"') => text(&serde_json::from_str::<String>(json).map_err(broken)?),
        Some(b'[') => {
            let items: Vec<Box<RawValue>> = serde_json::from_str(json).map_err(broken)?;
            let depth = within(depth + 1)?;
            items.iter().try_for_each(|item| check(item.get(), depth))
        }
        Some(b'{') => {
            let Members(members) = serde_json::from_str(json).map_err(broken)?;
            let depth = within(depth + 1)?;
            members.iter().try_for_each(|(name, value)| {
                text(name)?;
                check(value.get(), depth)
            })
        }
        _ => serde_json::from_str::<&RawValue>(json).map(drop).map_err(broken),
    }
}

fn text(text: &str) -> Result<(), String> {
    if text.contains('\0') { Err(format!("{text:?} has a NUL")) } else { Ok(()) }
}

/// All members of an object; a map would drop those whose name comes again.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;

        impl<'de> Visitor<'de> for All {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_database_can_hold_is_found() {
        let deep = format!("{}{}", "[".repeat(MAX_JSON_DEPTH + 1), "]".repeat(MAX_JSON_DEPTH + 1));
        for json in [
            r#"{"a":[1,"\u0000"]}"#,
            r#"{"\u0000":1}"#,
            r#"{"a":"\u0000","a":1}"#,
            r#"["\ud800"]"#,
            "{",
            &deep,
        ] {
            assert!(why_not_storable(json).is_some(), "{json}");
        }
        for json in [" {\"a\" : [1e999, \"\\ud83d\\ude00\", null]}", "-0", &deep[1..deep.len() - 1]] {
            assert_eq!(why_not_storable(json), None);
        }
    }

    #[test]
    fn an_input_survives_its_file() {
        let input = Hostile::from_bytes(b"user-1\xffT\xff[1]\xff{}\xffc");
        assert_eq!(Hostile::from_bytes(&input.to_bytes()), input);
        assert_eq!((input.stream.as_str(), input.correlation_id.as_deref()), ("user-1", Some("c")));
    }
}
