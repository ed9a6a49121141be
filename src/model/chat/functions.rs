//! The environment that Hugging Face gives chat templates beyond plain Jinja.

use std::fmt::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

use super::budget::{charge, printed};

/// The text of `raise_exception`.
#[derive(Debug)]
pub struct Raised(pub String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// Adds block trimming, Python's way to print None and booleans, `raise_exception`, `strftime_now` and Python's
/// `tojson`.
pub fn install(environment: &mut Environment<'_>) {
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_formatter(|out, state, value| {
        charge(printed(value)?)?;
        match value.kind() {
            ValueKind::None => Ok(out.write_str("None")?),
            ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
            _ => minijinja::escape_formatter(out, state, value),
        }
    });
    environment.add_function("raise_exception", |text: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, text.clone()).with_source(Raised(text)))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        strftime(&format, now)
    });
    environment.add_filter("tojson", tojson);
}

/// `{% generation %}` marks the assistant's words for training; it prints nothing. Jinja here does not know the
/// tag, so it becomes a block that always runs.
pub fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        out.push_str(before);
        rest = tag;
        let Some(end) = tag.find("%}") else { break };
        let inner = &tag[..end];
        let word = inner.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim();
        let instead = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => continue,
        };
        out.push_str(&inner.replacen(word, instead, 1));
        rest = &tag[end..];
    }
    out + rest
}

/// `json.dumps(value, ensure_ascii=False, indent=..., separators=..., sort_keys=...)`: spaces after separators,
/// nothing escaped for HTML.
fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
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

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The date formats that templates use, in UTC (a library has no business with the process's time zone).
fn strftime(format: &str, unix: u64) -> String {
    let days = unix / 86400;
    let (hour, minute, second) = (unix / 3600 % 24, unix / 60 % 60, unix % 60);
    // Days since 0000-03-01, in cycles of 400 years (Hinnant's civil_from_days).
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (month_name, day_name) = (MONTHS[month as usize - 1], DAYS[((days + 4) % 7) as usize]);

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let (plain, code) = match chars.next() {
            Some('-') => (true, chars.next()),
            other => (false, other),
        };
        let two = |n: u64| if plain { n.to_string() } else { format!("{n:02}") };
        match code {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &two(year % 100),
            Some('m') => out += &two(month),
            Some('d') => out += &two(day),
            Some('H') => out += &two(hour),
            Some('I') => out += &two((hour + 11) % 12 + 1),
            Some('M') => out += &two(minute),
            Some('S') => out += &two(second),
            Some('p') => out += if hour < 12 { "AM" } else { "PM" },
            Some('B') => out += month_name,
            Some('b') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('F') => out += &format!("{year}-{month:02}-{day:02}"),
            Some('T') => out += &format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => out += "UTC",
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(strftime("%d %b %Y", 1_732_402_200), "23 Nov 2024");
        assert_eq!(strftime("%A %-d %B %Y %H:%M:%S %p%%", 951_827_696), "Tuesday 29 February 2000 12:34:56 PM%");
        assert_eq!(strftime("%F", 0), "1970-01-01");
    }

    #[test]
    fn generation_tags() {
        let source = "{%- generation -%}a{% endgeneration %}{% if generation %}{%";
        assert_eq!(without_generation_tags(source), "{%- if true -%}a{% endif %}{% if generation %}{%");
    }
}
