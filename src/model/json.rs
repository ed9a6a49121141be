//! Reading the small JSON files of a model directory: bounded in size, depth and number of values, duplicate keys
//! refused, and typed access whose errors name the file, the key, what was expected and what was found.

use std::cell::Cell;
use std::fmt;
use std::io::Read;
use std::path::Path;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::{bail, error};

/// Reads a whole regular file of at most `limit` bytes; `None` when there is no such file.
pub fn read_bytes(path: &Path, limit: usize) -> Result<Option<Vec<u8>>> {
    let name = path.display();
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(name, &e)),
        Ok(meta) if !meta.is_file() => bail!(Io, "{name}: expected a regular file, found something else"),
        Ok(meta) if meta.len() > limit as u64 => {
            bail!(Corrupt, "{name}: {} bytes, more than the {limit} a file of this kind may have", meta.len())
        }
        Ok(_) => {}
    }
    let file = std::fs::File::open(path).map_err(|e| Error::io(name, &e))?;
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path.display(), &e))?;
    if bytes.len() > limit {
        bail!(Corrupt, "{}: grew beyond {limit} bytes while it was read", path.display());
    }
    Ok(Some(bytes))
}

/// Reads a whole regular file of UTF-8; see [`read_bytes`].
pub fn read_text(path: &Path, limit: usize) -> Result<Option<String>> {
    match read_bytes(path, limit)? {
        None => Ok(None),
        Some(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(e) => bail!(Corrupt, "{}: not UTF-8 from byte {}", path.display(), e.utf8_error().valid_up_to()),
        },
    }
}

/// Values, nested ones included, that one document may have: each takes some ten times what `0,` takes in the file.
const VALUES_MAX: usize = 1 << 20;

/// Reads any JSON value, except that a key twice in an object is an error, and more values than it counts down from.
pub(super) struct Strict<'a>(pub &'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        match self.0.get().checked_sub(1) {
            Some(left) => self.0.set(left),
            None => return Err(de::Error::custom("too many values")),
        }
        deserializer.deserialize_any(StrictVisitor(self.0))
    }
}

struct StrictVisitor<'a>(&'a Cell<usize>);

impl<'de> Visitor<'de> for StrictVisitor<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, v: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_u64<E>(self, v: u64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_i64<E>(self, v: i64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_f64<E>(self, v: f64) -> std::result::Result<Value, E> {
        Ok(v.into())
    }

    fn visit_str<E>(self, v: &str) -> std::result::Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element_seed(Strict(self.0))? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = access.next_value_seed(Strict(self.0))?;
            if map.contains_key(&key) {
                return Err(de::Error::custom(format!("key \"{key}\" occurs twice")));
            }
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// Parses JSON strictly; `file` is named in errors.
pub fn parse(file: &str, text: &[u8]) -> Result<Value> {
    let left = Cell::new(VALUES_MAX);
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = Strict(&left).deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    value.map_err(|e| error!(Corrupt, "{file}: malformed JSON: {e}"))
}

/// A value as an error shows it: short whatever it is.
pub fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.len() <= 60 {
        return text;
    }
    text.chars().take(57).collect::<String>() + "..."
}

/// A JSON object together with where it came from. `null` counts as absent.
#[derive(Clone, Debug)]
pub struct Object {
    place: String,
    map: Map<String, Value>,
}

impl Object {
    /// Wraps an object; `place` is named in errors.
    pub fn new(place: impl Into<String>, map: Map<String, Value>) -> Self {
        Object { place: place.into(), map }
    }

    /// Parses a file that holds one object.
    pub fn parse(file: &str, text: &[u8]) -> Result<Self> {
        match parse(file, text)? {
            Value::Object(map) => Ok(Object::new(file, map)),
            other => bail!(Corrupt, "{file}: expected a JSON object, found {}", shown(&other)),
        }
    }

    /// Reads and parses a file; `None` when there is none.
    pub fn read(path: &Path, limit: usize) -> Result<Option<Self>> {
        match read_text(path, limit)? {
            Some(text) => Object::parse(&path.display().to_string(), text.as_bytes()).map(Some),
            None => Ok(None),
        }
    }

    /// The file, or file and key, that errors name.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// All keys and values, `null` included.
    pub fn map(&self) -> &Map<String, Value> {
        &self.map
    }

    /// Whether the key is there at all, `null` included.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The value of a key; None if it is absent or `null`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Error for a value that is missing or of the wrong kind.
    pub fn wrong(&self, key: &str, expected: &str) -> Error {
        match self.map.get(key) {
            Some(value) => error!(Corrupt, "{}: {key} = {}: expected {expected}", self.place, shown(value)),
            None => error!(Corrupt, "{}: {key} is missing: expected {expected}", self.place),
        }
    }

    /// A whole number within bounds; None if absent.
    pub fn int(&self, key: &str, min: u64, max: u64) -> Result<Option<u64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(n) if (min..=max).contains(&n) => Ok(Some(n)),
                _ => Err(self.wrong(key, &format!("a whole number from {min} to {max}"))),
            },
        }
    }

    /// A whole number within bounds that must be there.
    pub fn required_int(&self, key: &str, min: u64, max: u64) -> Result<u64> {
        self.int(key, min, max)?.ok_or_else(|| self.wrong(key, &format!("a whole number from {min} to {max}")))
    }

    /// A finite number that `accept` agrees to; None if absent.
    pub fn number(&self, key: &str, expected: &str, accept: impl Fn(f64) -> bool) -> Result<Option<f64>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64() {
                Some(x) if x.is_finite() && accept(x) => Ok(Some(x)),
                _ => Err(self.wrong(key, expected)),
            },
        }
    }

    /// A boolean, or `default` if absent.
    pub fn bool(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.wrong(key, "true or false")),
        }
    }

    /// A string; None if absent.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.wrong(key, "a string")),
        }
    }

    /// A list of strings; None if absent.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let strings = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        strings.map(Some).ok_or_else(|| self.wrong(key, "a list of strings"))
    }

    /// An object within this one; None if absent.
    pub fn object(&self, key: &str) -> Result<Option<Object>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Object::new(format!("{}: {key}", self.place), map.clone()))),
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }
}
