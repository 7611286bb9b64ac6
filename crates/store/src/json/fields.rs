//! The fields at the top level of a JSON object: one is looked at or replaced, the others stay as they are written.

use std::fmt;

use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{InvalidJson, Json};

impl Json {
    /// A field at the top level of the object; none if there is none, or if this is no object.
    pub fn field(&self, name: &str) -> Option<Self> {
        let fields = self.fields().ok()?;
        let found = fields.into_iter().find(|(field, _)| field == name);
        found.map(|(_, value)| Self(value.get().into()))
    }

    /// The object with this field, at the place of the one that it had; the values of all others stay as they are
    /// written.
    pub fn with_field(&self, name: &str, value: &Self) -> Result<Self, InvalidJson> {
        self.rebuilt(name, Some(value))
    }

    /// The object without this field.
    pub fn without_field(&self, name: &str) -> Result<Self, InvalidJson> {
        self.rebuilt(name, None)
    }

    fn rebuilt(&self, name: &str, value: Option<&Self>) -> Result<Self, InvalidJson> {
        let fields = self.fields()?;
        let mut text = String::with_capacity(self.0.len() + name.len() + 16);
        let mut put = |field: &str, value: &str| -> serde_json::Result<()> {
            text.push(if text.is_empty() { '{' } else { ',' });
            text.push_str(&serde_json::to_string(field)?);
            text.push(':');
            text.push_str(value);
            Ok(())
        };
        let mut is_new = true;
        for (field, old) in fields {
            if field != name {
                put(&field, old.get())?;
            } else if let Some(value) = value {
                put(&field, &value.0)?;
                is_new = false;
            }
        }
        if let Some(value) = value.filter(|_| is_new) {
            put(name, &value.0)?;
        }
        text.push_str(if text.is_empty() { "{}" } else { "}" });
        // One level more than the value had alone.
        Self::parse(text)
    }

    fn fields(&self) -> Result<Vec<(String, &RawValue)>, InvalidJson> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(fields)
            }
        }
        if !self.is_object() {
            return Err(InvalidJson::NotAnObject);
        }
        Ok(serde_json::Deserializer::from_str(&self.0).deserialize_map(Fields)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_field_changes_and_the_others_stay_as_written() {
        let object = Json::parse("{ \"b\": 1.0, \"a\" : [1e3,  \"ü\"] }").unwrap();
        let two = Json::parse("2").unwrap();
        let changed = |name: &str| object.with_field(name, &two).unwrap().to_string();
        assert_eq!(changed("b"), r#"{"b":2,"a":[1e3,  "ü"]}"#);
        assert_eq!(changed("c\""), r#"{"b":1.0,"a":[1e3,  "ü"],"c\"":2}"#);
        assert_eq!(object.without_field("b").unwrap().as_str(), r#"{"a":[1e3,  "ü"]}"#);
        assert_eq!(object.without_field("c").unwrap().field("b").unwrap().as_str(), "1.0");
        assert_eq!(Json::empty_object().without_field("c").unwrap(), Json::empty_object());
        assert_eq!(Json::empty_object().with_field("c", &two).unwrap().as_str(), r#"{"c":2}"#);
        assert!(matches!(two.with_field("c", &two), Err(InvalidJson::NotAnObject)));
        assert_eq!((two.field("c"), object.field("c")), (None, None));
    }
}
