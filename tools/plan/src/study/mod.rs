//! The data behind the figures and tables of docs/scale.md: each part is a CSV file that says what was asked and what came
//! out; the first example of the page is a text. Everything is computed by the simulator, so the files are the same on every machine.

mod claims;
mod conversations;
mod example;
mod prefill;
mod serving;
mod switching;

use std::path::Path;

/// Writes all parts into a directory.
pub fn write(out: &Path) -> Result<(), String> {
    type Part = (&'static str, fn() -> Result<Vec<Vec<String>>, String>);
    let parts: [Part; 4] = [
        ("scale-prefill.csv", prefill::rows),
        ("scale-claims.csv", claims::rows),
        ("scale-serving.csv", serving::rows),
        ("scale-switching.csv", switching::rows),
    ];
    let path = out.join("scale-recommend.txt");
    std::fs::write(&path, example::text()?).map_err(|error| format!("{}: {error}", path.display()))?;
    for (name, rows) in parts {
        let path = out.join(name);
        let fail = |error: csv::Error| format!("{}: {error}", path.display());
        let begun = std::time::Instant::now();
        let mut writer = csv::Writer::from_path(&path).map_err(fail)?;
        for row in rows()? {
            writer.write_record(&row).map_err(fail)?;
        }
        writer.flush().map_err(|error| fail(error.into()))?;
        eprintln!("{}: {:.0} s", path.display(), begun.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Sequences in an engine: so many that memory and limits decide, not this number.
const MAX_SEQUENCES: usize = 1024;

/// The head of a table.
fn head<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.map(str::to_string).into()
}
