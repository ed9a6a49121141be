//! Figures: the committed files are what the script draws, and their numbers are those of docs/performance.md.

#[test]
fn figures_are_current() {
    match std::process::Command::new("python3").arg(super::root().join("tools/draw_figures.py")).arg("--check").output()
    {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
        Err(error) => eprintln!("skipped: python3: {error}"),
    }
}

#[test]
fn drawn_numbers_stand_in_the_document() {
    let data = super::read("docs/images/cpu-peers.csv");
    let document = super::read("docs/performance.md").replace('–', "-");
    // The first column is a quoted name with a comma of its own.
    let rows: Vec<Vec<&str>> =
        data.lines().skip_while(|l| l.starts_with('#')).map(|l| l.rsplitn(5, ',').collect()).collect();
    let (names, measures) = rows.split_first().expect("the data has a head");
    for (column, name) in names.iter().enumerate().take(4) {
        let values: Vec<&str> =
            measures.iter().map(|row| row[column]).map(|v| if v.is_empty() { "not measured" } else { v }).collect();
        let row = format!("| {} |", values.join(" | "));
        assert!(document.contains(&row), "docs/performance.md has no row \"{row}\" for {name}");
    }
}
