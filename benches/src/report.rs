//! Rows, and tables of them.

use std::fmt::Write;

use ergon_bench_round::{Backend, Case, Durability, Summary, System, Work};
use serde::Serialize;

/// One line of `results.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    pub(crate) work: Work,
    pub(crate) system: System,
    pub(crate) backend: Backend,
    pub(crate) durability: Durability,
    pub(crate) concurrency: usize,
    pub(crate) metric: String,
    unit: String,
    pub(crate) median: f64,
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

/// The tables of each work, in Markdown: ours beside the limit, a line per figure, and the peers, with how many times
/// ours is what theirs is.
pub(crate) fn tables(rows: &[Row]) -> String {
    let mut text = String::new();
    for rows in rows.chunk_by(|a, b| a.work == b.work) {
        let _ = write!(text, "\n### {}\n", rows[0].work);
        for table in [beside_the_limit(rows), beside_peers(rows)] {
            if table.len() > 1 {
                let _ = write!(text, "\n{}", aligned(&table));
            }
        }
    }
    text
}

/// What helps to choose a log: a line for each, with few figures of ours.
pub(crate) fn by_log(rows: &[Row]) -> String {
    let ours: Vec<&Row> = rows.iter().filter(|row| row.system == System::Ergon).collect();
    let mut logs: Vec<(Backend, Durability)> = ours.iter().map(|row| (row.backend, row.durability)).collect();
    logs.sort_unstable();
    logs.dedup();
    let mut table = vec![BY_LOG.map(|(column, ..)| column.to_owned()).to_vec()];
    table[0].insert(0, "log".into());
    for (backend, durability) in logs {
        let of = |(_, work, concurrency, metric): (&str, Work, usize, &str)| {
            let is = |row: &&&Row| {
                (row.work, row.backend, row.durability, row.concurrency, &*row.metric)
                    == (work, backend, durability, concurrency, metric)
            };
            ours.iter().find(is).map(|row| format!("{} {}", rounded(row.median), row.unit)).unwrap_or_default()
        };
        let mut line = vec![place(backend, durability)];
        line.extend(BY_LOG.map(of));
        table.push(line);
    }
    aligned(&table)
}

/// What each column has: a work, how many at once, and the figure of it.
const BY_LOG: [(&str, Work, usize, &str); 4] = [
    ("flows of 5 steps, 256 at once", Work::Drain, 256, "enqueue to end"),
    ("one alone, p50", Work::Alone, 1, "p50"),
    ("a signal to the step that waits, p50", Work::Signals, 1, "signal to step p50"),
    ("a due timer's lateness, p99", Work::Sleepers, 256, "lateness p99"),
];

fn beside_the_limit(rows: &[Row]) -> Vec<Vec<String>> {
    let rows: Vec<&Row> = rows.iter().filter(|row| !row.system.is_peer()).collect();
    let systems: Vec<System> = [System::Ergon, System::Raw]
        .into_iter()
        .filter(|system| rows.iter().any(|row| row.system == *system))
        .collect();
    let with_ratio = systems.len() == 2;
    let mut header = vec!["backend".to_owned(), "at once".into(), "metric".into()];
    header.extend(systems.iter().map(ToString::to_string));
    header.extend(with_ratio.then(|| "ergon ÷ raw".into()));
    let lines = subjects(&rows).into_iter().map(|subject| {
        let of = |system| rows.iter().find(|row| row.subject() == subject && row.system == system).copied();
        let (_, backend, durability, concurrency, metric, unit) = subject;
        let mut line = vec![place(backend, durability), group(concurrency), format!("{metric}, {unit}")];
        line.extend(systems.iter().map(|system| of(*system).map(figure).unwrap_or_default()));
        if with_ratio {
            line.push(of(System::Ergon).zip(of(System::Raw)).map(ratio).unwrap_or_default());
        }
        line
    });
    std::iter::once(header).chain(lines).collect()
}

fn beside_peers(rows: &[Row]) -> Vec<Vec<String>> {
    let peers: Vec<&Row> = rows.iter().filter(|row| row.system.is_peer()).collect();
    let header = ["peer", "backend", "at once", "metric", "peer's", "ergon ÷ peer", "ergon full ÷ peer"];
    let mut table = vec![header.map(String::from).to_vec()];
    for subject in subjects(&peers) {
        let (_, backend, durability, concurrency, metric, unit) = subject;
        for peer in peers.iter().filter(|row| row.subject() == subject) {
            let ours = |durability| {
                let mut subject = subject;
                subject.2 = durability;
                rows.iter().find(|row| row.system == System::Ergon && row.subject() == subject)
            };
            let ratio_at = |durability| ours(durability).map(|ours| ratio((ours, peer))).unwrap_or_default();
            table.push(vec![
                peer.system.to_string(),
                match durability {
                    Durability::None => format!("{backend} off"),
                    durability => place(backend, durability),
                },
                group(concurrency),
                format!("{metric}, {unit}"),
                figure(peer),
                ratio_at(durability),
                ratio_at(Durability::Full),
            ]);
        }
    }
    table
}

/// What is compared, backend by backend, whatever the order in which the systems took their turns.
fn subjects<'r>(rows: &[&'r Row]) -> Vec<(Work, Backend, Durability, usize, &'r str, &'r str)> {
    let mut subjects = Vec::new();
    for row in rows {
        if !subjects.contains(&row.subject()) {
            subjects.push(row.subject());
        }
    }
    subjects.sort_by_key(|(_, backend, durability, concurrency, ..)| (*backend, *durability, *concurrency));
    subjects
}

fn place(backend: Backend, durability: Durability) -> String {
    match durability {
        Durability::None => backend.to_string(),
        durability => format!("{backend} {durability}"),
    }
}

/// How many times the first is the second.
fn ratio((one, other): (&Row, &Row)) -> String {
    let ratio = one.median / other.median;
    if ratio < 10.0 { format!("{ratio:.2}") } else { rounded(ratio) }
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
    fn a_log_has_a_line_of_our_figures() {
        let mut ours = row(System::Ergon, 15_000.0);
        ours.metric = "enqueue to end".into();
        let text = by_log(&[ours, row(System::Raw, 20_000.0)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[2].starts_with("| sqlite full | 15,000 flows/s "), "{text}");
    }

    #[test]
    fn figures_have_three_digits_at_least() {
        for (value, text) in [(0.0123, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (999.6, "1,000"), (1e6, "1,000,000")]
        {
            assert_eq!(rounded(value), text);
        }
    }
}
