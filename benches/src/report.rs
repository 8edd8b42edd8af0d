//! Rows, and tables of them.

use std::fmt::Write;

use serde::Serialize;

use crate::{
    case::{Backend, Case, Durability, System, Work},
    stats::Summary,
};

/// One line of `results.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    work: Work,
    system: System,
    backend: Backend,
    durability: Durability,
    concurrency: usize,
    metric: String,
    unit: String,
    median: f64,
    min: f64,
    max: f64,
    rounds: usize,
}

impl Row {
    pub(crate) fn new(case: &Case, metric: String, unit: String, summary: Summary) -> Self {
        let Case { work, system, backend, durability, concurrency, .. } = *case;
        let Summary { median, min, max, rounds } = summary;
        Self { work, system, backend, durability, concurrency, metric, unit, median, min, max, rounds }
    }

    /// What is compared between systems.
    fn subject(&self) -> (Work, Backend, Durability, usize, &str, &str) {
        (self.work, self.backend, self.durability, self.concurrency, &self.metric, &self.unit)
    }
}

/// One table per work, in Markdown: a line per figure, a column per system, and the ratio to the raw limit where it
/// was measured in the same run.
pub(crate) fn tables(rows: &[Row]) -> String {
    let mut text = String::new();
    for rows in rows.chunk_by(|a, b| a.work == b.work) {
        let mut systems: Vec<System> = Vec::new();
        let mut subjects = Vec::new();
        for row in rows {
            if !systems.contains(&row.system) {
                systems.push(row.system);
            }
            if !subjects.contains(&row.subject()) {
                subjects.push(row.subject());
            }
        }
        // Backend by backend, whatever the order in which the systems took their turns.
        subjects
            .sort_by_key(|(_, backend, durability, concurrency, ..)| (*backend as u8, *durability as u8, *concurrency));
        let with_ratio = systems.contains(&System::Ergon) && systems.contains(&System::Raw);
        let mut header = vec!["backend".to_owned(), "at once".into(), "metric".into()];
        header.extend(systems.iter().map(ToString::to_string));
        header.extend(with_ratio.then(|| "ergon ÷ raw".into()));
        let lines = subjects.into_iter().map(|subject| {
            let of = |system| rows.iter().find(|row| row.subject() == subject && row.system == system);
            let (_, backend, durability, concurrency, metric, unit) = subject;
            let place = match durability {
                Durability::None => backend.to_string(),
                durability => format!("{backend} {durability}"),
            };
            let mut line = vec![place, group(concurrency), format!("{metric}, {unit}")];
            line.extend(systems.iter().map(|system| of(*system).map(figure).unwrap_or_default()));
            if with_ratio {
                let ratio = of(System::Ergon).zip(of(System::Raw)).map(|(ergon, raw)| ergon.median / raw.median);
                line.push(ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default());
            }
            line
        });
        let table: Vec<Vec<String>> = std::iter::once(header).chain(lines).collect();
        let _ = write!(text, "\n### {}\n\n{}", rows[0].work, aligned(&table));
    }
    text
}

/// A median with its range.
fn figure(row: &Row) -> String {
    format!("{} ({}–{})", rounded(row.median), rounded(row.min), rounded(row.max))
}

/// Three digits, or all of those before the point, in groups.
fn rounded(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    match (decimals, text.parse()) {
        (0, Ok(whole)) => group(whole),
        _ => text,
    }
}

fn group(whole: usize) -> String {
    let digits = whole.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A Markdown table whose columns stand below each other; the first line is the header.
fn aligned(table: &[Vec<String>]) -> String {
    let columns = table.first().map_or(0, Vec::len);
    let width = |column: usize| table.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (number, line) in table.iter().enumerate() {
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
        if number == 0 {
            for width in &widths {
                let _ = write!(text, "|{:-<1$}", "", width + 2);
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(system: System, median: f64) -> Row {
        let (work, backend, durability) = (Work::Drain, Backend::Sqlite, Durability::Full);
        let case = Case { work, system, backend, durability, concurrency: 256, size: 1 };
        let summary = Summary { median, min: median / 2.0, max: median * 2.0, rounds: 3 };
        Row::new(&case, "all".into(), "flows/s".into(), summary)
    }

    #[test]
    fn a_table_has_the_ratio_of_what_was_measured_together() {
        let text = tables(&[row(System::Ergon, 15_000.0), row(System::Raw, 20_000.0)]);
        let expected = "
### drain

| backend     | at once | metric       | ergon                 | raw                    | ergon ÷ raw |
|-------------|---------|--------------|-----------------------|------------------------|-------------|
| sqlite full | 256     | all, flows/s | 15,000 (7,500–30,000) | 20,000 (10,000–40,000) | 0.75        |
";
        assert_eq!(text, expected);
        assert!(!tables(&[row(System::Ergon, 1.0)]).contains("÷"));
    }

    #[test]
    fn figures_have_three_digits_at_least() {
        for (value, text) in [(0.0123, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (999.6, "1,000"), (1e6, "1,000,000")]
        {
            assert_eq!(rounded(value), text);
        }
    }
}
