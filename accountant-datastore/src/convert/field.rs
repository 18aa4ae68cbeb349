//! Values as people write them: a field may be absent, null, or of another type than it should be.
//!
//! In goes any self-describing format of serde (JSON, YAML); out comes the value, nothing, or what stood there instead.
//!
//! Invariant: a wrong type never fails the object that it is in, nor its list; conversion decides whether it matters.
//! Only what is asked for is kept, so a large object costs as little memory as a small one.

use super::ConvertError;
use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::fmt;
use std::marker::PhantomData;

/// Longest list that is read.
pub(crate) const MAX_ITEMS: usize = 250_000;

/// A value that may be absent, or something else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Field<T> {
    /// Not there, or null.
    #[default]
    Absent,
    /// As it should be.
    Is(T),
    /// Something else: what it is.
    Wrong(&'static str),
}

impl<T> Field<T> {
    /// The value, if there is one. `name` is where it stands in the object.
    pub(crate) fn read(&self, name: &'static str) -> Result<Option<&T>, ConvertError> {
        match self {
            Self::Absent => Ok(None),
            Self::Is(value) => Ok(Some(value)),
            Self::Wrong(found) => Err(ConvertError::Type { field: name, found }),
        }
    }
}

impl Field<Box<str>> {
    /// The text; empty if there is none.
    pub(crate) fn text(&self, name: &'static str) -> Result<&str, ConvertError> {
        Ok(self.read(name)?.map_or("", |text| text))
    }

    /// The text, which must be there.
    pub(crate) fn required(&self, name: &'static str) -> Result<&str, ConvertError> {
        match self.text(name)? {
            "" => Err(ConvertError::Missing { field: name }),
            text => Ok(text),
        }
    }
}

/// A group of fields; an absent group is a group of absent fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Group<T> {
    /// The fields.
    Is(T),
    /// Something else: what it is.
    Wrong(&'static str),
}

impl<T: Default> Default for Group<T> {
    fn default() -> Self {
        Self::Is(T::default())
    }
}

impl<T> Group<T> {
    /// The fields. `name` is where the group stands in the object.
    pub(crate) fn read(&self, name: &'static str) -> Result<&T, ConvertError> {
        match self {
            Self::Is(fields) => Ok(fields),
            Self::Wrong(found) => Err(ConvertError::Type { field: name, found }),
        }
    }
}

/// What a type can be read from; by default from nothing at all.
pub(crate) trait Shape<'de>: Sized {
    fn from_text(_text: &str) -> Option<Self> {
        None
    }

    fn from_truth(_truth: bool) -> Option<Self> {
        None
    }

    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn from_map<A: MapAccess<'de>>(mut map: A) -> Result<Option<Self>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

impl Shape<'_> for Box<str> {
    fn from_text(text: &str) -> Option<Self> {
        Some(text.into())
    }
}

/// Kubernetes reads YAML 1.1, which has more words for it than YAML 1.2 and JSON.
impl Shape<'_> for bool {
    fn from_text(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "y" | "yes" | "on" => Some(true),
            "n" | "no" | "off" => Some(false),
            _ => None,
        }
    }

    fn from_truth(truth: bool) -> Option<Self> {
        Some(truth)
    }
}

impl<'de, T: Deserialize<'de>> Shape<'de> for Vec<T> {
    fn from_list<A: SeqAccess<'de>>(mut list: A) -> Result<Option<Self>, A::Error> {
        let mut items = Self::new();
        while let Some(item) = list.next_element()? {
            if items.len() == MAX_ITEMS {
                return Err(A::Error::custom(format!("a list has more than {MAX_ITEMS} items")));
            }
            items.push(item);
        }
        Ok(Some(items))
    }
}

/// Lets structs with a derived `Deserialize` be fields and groups.
macro_rules! read_from_maps {
    ($($group:ty),+) => {$(
        impl<'de> $crate::convert::field::Shape<'de> for $group {
            fn from_map<A: serde::de::MapAccess<'de>>(map: A) -> Result<Option<Self>, A::Error> {
                Self::deserialize(serde::de::value::MapAccessDeserializer::new(map)).map(Some)
            }
        }
    )+};
}
pub(crate) use read_from_maps;

impl<'de, T: Shape<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tolerant(PhantomData))
    }
}

impl<'de, T: Shape<'de> + Default> Deserialize<'de> for Group<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Field::deserialize(deserializer)? {
            Field::Absent => Self::default(),
            Field::Is(fields) => Self::Is(fields),
            Field::Wrong(found) => Self::Wrong(found),
        })
    }
}

/// Takes whatever comes.
struct Tolerant<T>(PhantomData<T>);

fn found<T>(value: Option<T>, otherwise: &'static str) -> Field<T> {
    value.map_or(Field::Wrong(otherwise), Field::Is)
}

impl<'de, T: Shape<'de>> Visitor<'de> for Tolerant<T> {
    type Value = Field<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Field::Absent)
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(Field::Absent)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        Field::deserialize(deserializer)
    }

    fn visit_bool<E>(self, truth: bool) -> Result<Self::Value, E> {
        Ok(found(T::from_truth(truth), "a truth value"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Field::Wrong("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Field::Wrong("a number"))
    }

    fn visit_i128<E>(self, _: i128) -> Result<Self::Value, E> {
        Ok(Field::Wrong("a number"))
    }

    fn visit_u128<E>(self, _: u128) -> Result<Self::Value, E> {
        Ok(Field::Wrong("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Field::Wrong("a number"))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(found(T::from_text(text), "text"))
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Self::Value, E> {
        Ok(Field::Wrong("binary"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        Ok(found(T::from_list(list)?, "a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        Ok(found(T::from_map(map)?, "a map"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default)]
    struct Box2 {
        name: Field<Box<str>>,
        on: Field<bool>,
        list: Field<Vec<Field<Box<str>>>>,
    }
    read_from_maps!(Box2);

    #[track_caller]
    fn check(json: &str, want: Field<Box2>) {
        assert_eq!(serde_json::from_str::<Field<Box2>>(json).expect("any JSON is taken"), want);
        assert_eq!(serde_saphyr::from_str::<Field<Box2>>(json).expect("JSON is YAML"), want);
    }

    #[test]
    fn whatever_stands_there_is_taken_or_told() {
        check("null", Field::Absent);
        check("[1, [2], {}]", Field::Wrong("a list"));
        check("\"text\"", Field::Wrong("text"));
        check("{}", Field::Is(Box2::default()));
        check("{\"more\": {\"name\": 1}, \"name\": null}", Field::Is(Box2::default()));
        let name = |name| Field::Is(Box2 { name, ..Default::default() });
        check("{\"name\": \"x\"}", name(Field::Is("x".into())));
        check("{\"name\": 1.5}", name(Field::Wrong("a number")));
        check("{\"name\": -1}", name(Field::Wrong("a number")));
        check("{\"name\": true}", name(Field::Wrong("a truth value")));
        check("{\"name\": {\"a\": [1]}}", name(Field::Wrong("a map")));
        let on = |on| Field::Is(Box2 { on, ..Default::default() });
        check("{\"on\": true}", on(Field::Is(true)));
        check("{\"on\": \"No\"}", on(Field::Is(false)));
        check("{\"on\": \"1\"}", on(Field::Wrong("text")));
        let list = Field::Is(vec![Field::Is("a".into()), Field::Absent, Field::Wrong("a number")]);
        check("{\"list\": [\"a\", null, 3]}", Field::Is(Box2 { list, ..Default::default() }));
    }

    #[test]
    fn lists_have_an_end() {
        let long = format!("[{}0]", "0,".repeat(MAX_ITEMS));
        let error = serde_json::from_str::<Field<Vec<Field<bool>>>>(&long).expect_err("one too many");
        assert!(error.to_string().contains("more than 250000 items"), "{error}");
    }
}
