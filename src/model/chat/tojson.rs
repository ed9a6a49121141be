//! Python's `json.dumps`, as the filter `tojson`.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use super::budget::charge;

/// `json.dumps(value, ensure_ascii=False, indent=..., separators=..., sort_keys=...)`: spaces after separators,
/// nothing escaped for HTML.
pub fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(n) => Some(n),
        None => options.get("indent")?,
    };
    let separators: Option<(String, String)> = match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
        Some([item, key]) => Some((item.clone(), key.clone())),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators: expected two strings")),
        None => None,
    };
    let item = if indent.is_some() { "," } else { ", " };
    let (item, key) = separators.unwrap_or_else(|| (item.to_owned(), ": ".to_owned()));
    let dump = Dump {
        indent: indent.map(|n| n.min(64)),
        item,
        key,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    dump.value(value, 0, &mut out)?;
    Ok(out)
}

struct Dump {
    indent: Option<usize>,
    item: String,
    key: String,
    ascii: bool,
    sort: bool,
}

impl Dump {
    fn value(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > 200 {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: nested too deeply"));
        }
        match value.kind() {
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.list(['{', '}'], depth, keys, out, |key, out| {
                    charge(self.key.len())?;
                    self.string(&key.to_string(), out);
                    out.push_str(&self.key);
                    self.value(&value.get_item(&key)?, depth + 1, out)
                })
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(['[', ']'], depth, items, out, |item, out| self.value(&item, depth + 1, out))
            }
            ValueKind::String => {
                self.string(value.as_str().unwrap_or_default(), out);
                Ok(())
            }
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                let text = serde_json::to_string(value)
                    .map_err(|e| Error::new(ErrorKind::InvalidOperation, "tojson: no JSON form").with_source(e))?;
                out.push_str(&text);
                Ok(())
            }
            kind => Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {kind} has no JSON form"))),
        }
    }

    fn list(
        &self,
        [open, close]: [char; 2],
        depth: usize,
        items: Vec<Value>,
        out: &mut String,
        mut write: impl FnMut(Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let empty = items.is_empty();
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                charge(self.item.len())?;
                out.push_str(&self.item);
            }
            self.new_line(depth + 1, out)?;
            write(item, out)?;
        }
        if !empty {
            self.new_line(depth, out)?;
        }
        out.push(close);
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) -> Result<(), Error> {
        if let Some(width) = self.indent {
            charge(1 + width * depth)?;
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', width * depth));
        }
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
