//! JSON as far as a spec needs it.
//!
//! Objects keep repeated keys, which must not be lost silently: the last of two lines for one machine would
//! win otherwise.

use std::fmt;

use hoist_protocol::nearest;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

use super::{FieldError, shown};

/// Any JSON value.
pub(super) enum Json {
    Object(Vec<(String, Json)>),
    List(Vec<Json>),
    Text(String),
    Count(u64),
    Flag(bool),
    Null,
    /// A number that counts nothing.
    Number,
}

impl Json {
    fn kind(&self) -> &'static str {
        match self {
            Self::Object(_) => "an object",
            Self::List(_) => "a list",
            Self::Text(_) => "a string",
            Self::Count(_) | Self::Number => "a number",
            Self::Flag(_) => "true or false",
            Self::Null => "null",
        }
    }

    pub(super) fn object(
        self,
        field: &str,
        expected: &'static str,
    ) -> Result<Vec<(String, Self)>, FieldError> {
        match self {
            Self::Object(entries) => Ok(entries),
            other => Err(other.mismatch(field, expected)),
        }
    }

    pub(super) fn list(self, field: &str, expected: &'static str) -> Result<Vec<Self>, FieldError> {
        match self {
            Self::List(items) => Ok(items),
            other => Err(other.mismatch(field, expected)),
        }
    }

    pub(super) fn text(self, field: &str, expected: &'static str) -> Result<String, FieldError> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(other.mismatch(field, expected)),
        }
    }

    pub(super) fn count(self, field: &str) -> Result<u64, FieldError> {
        match self {
            Self::Count(count) => Ok(count),
            other => Err(other.mismatch(field, "a whole number")),
        }
    }

    pub(super) fn flag(self, field: &str) -> Result<bool, FieldError> {
        match self {
            Self::Flag(flag) => Ok(flag),
            other => Err(other.mismatch(field, "true or false")),
        }
    }

    pub(super) fn mismatch(&self, field: &str, expected: &'static str) -> FieldError {
        FieldError::Type {
            field: field.to_owned(),
            found: self.kind(),
            expected,
        }
    }
}

/// The fields of an object that has a fixed set of keys.
pub(super) struct Fields {
    /// Where the object stands, in backticks; empty for the spec itself.
    at: String,
    entries: Vec<(String, Json)>,
}

impl Fields {
    /// The fields of the object `what` at `at`. Every key has to be one of `keys`, and there once.
    pub(super) fn new(
        at: &str,
        what: &'static str,
        keys: &'static [&'static str],
        entries: Vec<(String, Json)>,
    ) -> Result<Self, FieldError> {
        for (number, (key, _)) in entries.iter().enumerate() {
            if !keys.contains(&key.as_str()) {
                return Err(FieldError::UnknownKey {
                    at: at.to_owned(),
                    nearest: nearest(key, keys.iter().copied()).map(str::to_owned),
                    key: shown(key),
                    what,
                    keys,
                });
            }
            if entries[..number].iter().any(|(other, _)| other == key) {
                return Err(FieldError::Twice {
                    field: field(at, key),
                });
            }
        }
        Ok(Self {
            at: at.to_owned(),
            entries,
        })
    }

    /// Takes the value of `key`, with the name of its field.
    pub(super) fn take(&mut self, key: &str) -> Option<(String, Json)> {
        let number = self.entries.iter().position(|(name, _)| name == key)?;
        let (_, value) = self.entries.swap_remove(number);
        Some((field(&self.at, key), value))
    }

    /// Takes the text of `key` and reads it with `read`.
    pub(super) fn read<T, E>(
        &mut self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, FieldError>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let Some((field, value)) = self.take(key) else {
            return Ok(None);
        };
        let text = value.text(&field, expected)?;
        match read(&text) {
            Ok(value) => Ok(Some(value)),
            Err(source) => Err(FieldError::Value {
                field,
                source: Box::new(source),
            }),
        }
    }

    /// Takes one of the words that `T` has.
    pub(super) fn word<T: clap::ValueEnum + 'static>(
        &mut self,
        key: &str,
    ) -> Result<Option<T>, FieldError> {
        let Some((field, value)) = self.take(key) else {
            return Ok(None);
        };
        let given = value.text(&field, "a string")?;
        if let Ok(value) = T::from_str(&given, false) {
            return Ok(Some(value));
        }
        let words: Vec<String> = words::<T>().collect();
        let similar = nearest(&given, words.iter().map(String::as_str));
        Err(FieldError::Word {
            field,
            given: shown(&given),
            nearest: similar.map(str::to_owned),
            words: words.join(", "),
        })
    }
}

/// The words that `T` has, as they are written.
pub(super) fn words<T: clap::ValueEnum + 'static>() -> impl Iterator<Item = String> {
    let values = T::value_variants().iter();
    values.filter_map(|value| Some(value.to_possible_value()?.get_name().to_owned()))
}

fn field(at: &str, key: &str) -> String {
    match at.strip_suffix('`') {
        Some(at) => format!("{at}.{}`", shown(key)),
        None => format!("`{}`", shown(key)),
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Json;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Json::Object(entries))
            }

            fn visit_str<E>(self, text: &str) -> Result<Json, E> {
                Ok(Json::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Json::List(items))
            }

            fn visit_unit<E>(self) -> Result<Json, E> {
                Ok(Json::Null)
            }

            fn visit_bool<E>(self, flag: bool) -> Result<Json, E> {
                Ok(Json::Flag(flag))
            }

            fn visit_i64<E>(self, _: i64) -> Result<Json, E> {
                Ok(Json::Number)
            }

            fn visit_u64<E>(self, count: u64) -> Result<Json, E> {
                Ok(Json::Count(count))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Json, E> {
                Ok(Json::Number)
            }
        }
        from.deserialize_any(Any)
    }
}
