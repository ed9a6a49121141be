//! The size of what filters and methods make, charged before they make it.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::budget::{self, charge, printed, shallow};

/// Charges for the filter `name` of `value`.
pub fn before_filter(name: &str, value: &Value, arguments: &[Value]) -> Result<(), Error> {
    charge(match name {
        "join" => joined(value, arguments.first())?,
        "replace" => replaced(value, arguments)?,
        "indent" => {
            let lines = value.as_str().map_or(0, |text| text.lines().count() + 1);
            let most = arguments.iter().map(named_or_plain_number).max().unwrap_or(0).max(4);
            shallow(value).saturating_add(lines.saturating_mul(most))
        }
        "format" => formatted(value, arguments)?,
        "batch" | "slice" => {
            let count = arguments.iter().map(named_or_plain_number).max().unwrap_or(0);
            shallow(value).saturating_add(count.saturating_mul(96))
        }
        // JSON escapes; what indentation adds is charged as it is written.
        "tojson" | "string" => printed(value)?,
        // Filters of filters: what each element may become.
        "map" | "select" | "reject" | "selectattr" | "rejectattr" | "groupby" | "zip" | "chain" => arguments
            .iter()
            .try_fold(budget::with_elements(value)?, |sum, argument| {
                Ok::<_, Error>(sum.saturating_add(budget::with_elements(argument)?))
            })?
            .saturating_mul(32),
        "trim" | "upper" | "lower" | "title" | "capitalize" | "length" | "count" | "default" | "d" | "first"
        | "last" => shallow(value).saturating_mul(3),
        // A list of characters, at worst.
        _ if value.as_str().is_some() => shallow(value).saturating_mul(32),
        _ => shallow(value).saturating_mul(2),
    })
}

/// Charges for the method `method` of `value`.
pub fn before_method(value: &Value, method: &str, arguments: &[Value]) -> Result<(), Error> {
    charge(match method {
        "join" => arguments.first().map_or(Ok(0), |list| joined(list, Some(value)))?,
        "replace" => replaced(value, arguments)?,
        "format" => formatted(value, arguments)?,
        "split" | "splitlines" => shallow(value).saturating_mul(32),
        _ => shallow(value).saturating_mul(3),
    })
}

/// A number given as an argument, by position or by any name.
fn named_or_plain_number(argument: &Value) -> usize {
    match argument.kind() {
        ValueKind::Map => {
            let keys = argument.try_iter().into_iter().flatten();
            keys.filter_map(|key| argument.get_item(&key).ok()?.as_usize()).max().unwrap_or(0)
        }
        _ => argument.as_usize().unwrap_or(0),
    }
}

fn joined(list: &Value, separator: Option<&Value>) -> Result<usize, Error> {
    let separator = separator.map_or(0, shallow);
    let mut sum = 0usize;
    if let Some(text) = list.as_str() {
        return Ok(text.len().saturating_mul(separator + 2));
    }
    if matches!(list.kind(), ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        // A list that only claims its length, as a repeated one does.
        charge(shallow(list))?;
        for item in list.try_iter()? {
            sum = sum.saturating_add(printed(&item)?.saturating_add(separator));
        }
    }
    Ok(sum)
}

fn replaced(text: &Value, arguments: &[Value]) -> Result<usize, Error> {
    let (from, to) = (arguments.first().map_or(1, shallow), arguments.get(1).map_or(0, shallow));
    let places = shallow(text) / from.max(1) + 1;
    Ok(shallow(text).saturating_add(places.saturating_mul(to)))
}

/// All widths that a format names, and every argument at every place.
fn formatted(format: &Value, arguments: &[Value]) -> Result<usize, Error> {
    let text = format.as_str().unwrap_or_default();
    let digits = text.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
    let mut widths = digits.fold(0usize, |sum, digits| sum.saturating_add(digits.parse().unwrap_or(usize::MAX)));
    if takes_widths(text) {
        let numbers =
            arguments.iter().map(|argument| argument.as_i64().map_or(named_or_plain_number(argument), magnitude));
        widths = numbers.fold(widths, usize::saturating_add);
    }
    let places = text.bytes().filter(|byte| matches!(byte, b'%' | b'{')).count();
    let most = arguments.iter().map(printed).try_fold(0, |most, size| Ok::<_, Error>(size?.max(most)))?;
    // Padding may be a character of four bytes.
    Ok(text.len().saturating_add(widths.saturating_mul(4)).saturating_add(places.saturating_mul(most + 512)))
}

fn magnitude(number: i64) -> usize {
    usize::try_from(number.unsigned_abs()).unwrap_or(usize::MAX)
}

/// Whether arguments of a format are widths: `%*d`, `{:{}}`.
fn takes_widths(format: &str) -> bool {
    let starred = format.split('%').skip(1).any(|spec| {
        let spec = spec.strip_prefix('(').map_or(spec, |keyed| keyed.split_once(')').map_or(keyed, |(_, rest)| rest));
        spec.trim_start_matches(|c: char| c.is_ascii_digit() || "#- +.".contains(c)).starts_with('*')
    });
    let mut depth = 0usize;
    let nested = format.replace("{{", "").replace("}}", "\0").bytes().any(|byte| {
        match byte {
            b'{' => depth += 1,
            b'}' => depth = depth.saturating_sub(1),
            // Two closing braces end a field within a field, or stand for one brace.
            0 => depth = depth.saturating_sub(2),
            _ => {}
        }
        depth > 1
    });
    starred || nested
}
