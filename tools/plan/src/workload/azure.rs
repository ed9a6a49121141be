//! Traces of the Azure LLM inference data set: CSV with the columns TIMESTAMP, ContextTokens and GeneratedTokens.

use super::{Arrival, from_zero};
use std::path::Path;
use std::sync::Arc;

/// Reads a trace. Requests without a prompt are skipped; an answer has at least one token. An error names the file and the
/// line.
pub fn read_azure(path: &Path) -> Result<Vec<Arrival>, String> {
    let fail = |line: u64, why: &str| format!("{}: line {line}: {why}", path.display());
    let mut reader = csv::Reader::from_path(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let head = reader.headers().map_err(|error| fail(1, &error.to_string()))?.clone();
    let column = |name: &str| {
        let at = head.iter().position(|column| column.trim() == name);
        at.ok_or_else(|| fail(1, &format!("there is no column {name}; Azure's traces have TIMESTAMP, ContextTokens and GeneratedTokens, and Mooncake's end in .jsonl")))
    };
    let (time, prompt, output) = (column("TIMESTAMP")?, column("ContextTokens")?, column("GeneratedTokens")?);
    let mut arrivals = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|error| {
            let line = error.position().map_or(0, csv::Position::line);
            fail(line, &error.to_string())
        })?;
        let line = record.position().map_or(0, csv::Position::line);
        let number = |at: usize, name: &str| {
            let text = record.get(at).unwrap_or("").trim();
            text.parse::<usize>().map_err(|_| fail(line, &format!("{name} {text:?} is not a number of tokens")))
        };
        let text = record.get(time).unwrap_or("").trim();
        let at_ns = nanoseconds(text)
            .ok_or_else(|| fail(line, &format!("TIMESTAMP {text:?} is not of the form 2023-11-16 18:17:03.97996")))?;
        let (prompt, output) = (number(prompt, "ContextTokens")?, number(output, "GeneratedTokens")?);
        if prompt > 0 {
            arrivals.push(Arrival { at_ns, prompt, output: output.max(1), blocks: Arc::new([]) });
        }
    }
    if arrivals.is_empty() {
        return Err(format!("{}: no requests", path.display()));
    }
    Ok(from_zero(arrivals))
}

/// Nanoseconds since 1970 of a date and time. A time zone at the end is cut off: a trace has only one.
fn nanoseconds(text: &str) -> Option<u64> {
    let (date, time) = text.split_once([' ', 'T'])?;
    let time = time.split(['+', 'Z']).next()?;
    let mut date = date.splitn(3, '-').map(str::parse::<u64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let mut clock = time.splitn(3, ':');
    let (hour, minute) = (clock.next()?.parse::<u64>().ok()?, clock.next()?.parse::<u64>().ok()?);
    let second = clock.next()?;
    let (second, fraction) = second.split_once('.').unwrap_or((second, "0"));
    let second = second.parse::<u64>().ok()?;
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if hour > 23 || minute > 59 || second > 60 || fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let padded = format!("{:0<9.9}", fraction);
    let seconds = ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Some(seconds * 1_000_000_000 + padded.parse::<u64>().ok()?)
}

/// Days since 1970 of a date in the Gregorian calendar.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Years that begin in March have the leap day at the end.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    let before_month = (153 * month + 2) / 5;
    year * 365 + leap_days + before_month + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_nanosecond() {
        assert_eq!(nanoseconds("1970-01-01 00:00:00.0"), Some(0));
        assert_eq!(nanoseconds("1970-01-02 00:00:01"), Some(86_401_000_000_000));
        assert_eq!(nanoseconds("2000-03-01 00:00:01.5"), Some(951_868_801_500_000_000));
        assert_eq!(nanoseconds("2023-11-16 18:17:03.9799600"), Some(1_700_158_623_979_960_000));
        assert_eq!(nanoseconds("2024-05-10 00:00:00.009930+00:00"), Some(1_715_299_200_009_930_000));
        for bad in
            ["", "2023-11-16", "2023-13-16 18:17:03.9", "2023-11-16 25:17:03.9", "2023-11-16 18:17:03.9x", "18:17"]
        {
            assert_eq!(nanoseconds(bad), None, "{bad}");
        }
    }
}
