//! `cargo xtask guard`: instructions that the hot path takes, against a committed baseline.
//!
//! Times differ from machine to machine and from minute to minute; the count of instructions of the same program does
//! not. Each work is run by valgrind in two sizes, and the difference is what one flow (or replay) costs.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    machine,
    shell::{self, Error, Result, cargo, output},
};

/// The works of `ergon-benches counted`, with the two sizes.
const WORKS: [(&str, u64, u64); 6] = [
    ("drain-memory", 500, 2_500),
    ("drain-sqlite", 300, 1_300),
    ("alone-memory", 100, 600),
    ("alone-sqlite", 50, 250),
    ("replay-memory", 5, 25),
    ("replay-sqlite", 5, 25),
];
/// What may be added, in percent.
const GROWTH_MAX: f64 = 10.0;
/// The C library chooses variants of its functions by the processor; these are those that every x86-64 has.
const TUNABLES: &str = "glibc.cpu.hwcaps=-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-ERMS,-FSRM,-AVX_Fast_Unaligned_Load";

/// What to do with the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Compare,
    Update,
}

/// How it went, where it did not fail.
#[derive(Debug)]
pub(crate) enum Outcome {
    Done,
    /// Why nothing was compared.
    Skipped(String),
}

pub(crate) fn command(args: &[String]) -> Result {
    let mode = match args {
        [] => Mode::Compare,
        [arg] if arg == "--update" => Mode::Update,
        _ => return Err(Error::new(format!("`cargo xtask guard` takes `--update` or nothing, got {args:?}"))),
    };
    if let Outcome::Skipped(why) = run(mode)? {
        eprintln!("nothing compared: {why}");
    }
    Ok(())
}

pub(crate) fn run(mode: Mode) -> Result<Outcome> {
    machine::need_c_compiler()?;
    if !machine::has_valgrind() {
        return Ok(Outcome::Skipped("there is no valgrind; `sudo apt-get install valgrind`".into()));
    }
    shell::run(&mut cargo(["build", "--profile", "bench", "--package", "ergon-benches"]))?;
    let program = shell::target().join("release/ergon-benches");
    let mut counts = BTreeMap::new();
    for (work, small, large) in WORKS {
        let (few, many) = (instructions(&program, work, small)?, instructions(&program, work, large)?);
        counts.insert(work, many.saturating_sub(few) / (large - small));
    }
    match mode {
        Mode::Update => update(&counts).map(|()| Outcome::Done),
        Mode::Compare => compare(&counts),
    }
}

/// The instructions of one process.
fn instructions(program: &Path, work: &str, size: u64) -> Result<u64> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program);
    command.args(["counted", work, &size.to_string()]).env("GLIBC_TUNABLES", TUNABLES);
    let failed = |why: &str| Error::new(format!("counting the instructions of {work} failed: {why}"));
    let output = command.stdin(Stdio::null()).output().map_err(|error| failed(&error.to_string()))?;
    let printed = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(failed(&printed));
    }
    collected(&printed).ok_or_else(|| failed("valgrind does not tell them"))
}

/// The count in what callgrind prints.
fn collected(printed: &str) -> Option<u64> {
    printed.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
}

fn baseline() -> PathBuf {
    shell::root().join("benches/baseline.json")
}

/// What the counts depend on beside our code.
fn compiler() -> Result<String> {
    let text = output(Command::new("rustc").arg("-vV")).ok_or_else(|| Error::new("`rustc -vV` failed"))?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("unknown").to_owned();
    Ok(format!("{} {}", field("release: "), field("host: ")))
}

fn update(counts: &BTreeMap<&str, u64>) -> Result {
    let value = json!({ "compiler": compiler()?, "instructions": counts });
    let path = baseline();
    fs::write(&path, format!("{value:#}\n")).map_err(|error| Error::new(format!("{}: {error}", path.display())))?;
    for (work, count) in counts {
        println!("{work:14} {count:>10} instructions");
    }
    Ok(())
}

fn compare(counts: &BTreeMap<&str, u64>) -> Result<Outcome> {
    let path = baseline();
    let unreadable = |why: String| Error::new(format!("{}: {why}; `cargo xtask guard --update`", path.display()));
    let text = fs::read_to_string(&path).map_err(|error| unreadable(error.to_string()))?;
    let baseline: Value = serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?;
    let mut grown = Vec::new();
    for (work, count) in counts {
        let Some(before) = baseline["instructions"][work].as_u64() else {
            return Err(unreadable(format!("it does not have {work}")));
        };
        let growth = growth(before, *count);
        println!("{work:14} {count:>10} instructions, {growth:+.1} % against {before}");
        if growth > GROWTH_MAX {
            grown.push(format!("{work} {growth:+.1} %"));
        }
    }
    let (ours, theirs) = (compiler()?, baseline["compiler"].as_str().unwrap_or_default());
    if ours != theirs {
        return Ok(Outcome::Skipped(format!("the baseline was counted with {theirs}, this is {ours}")));
    }
    if grown.is_empty() {
        return Ok(Outcome::Done);
    }
    Err(Error::new(format!(
        "more instructions than before, by over {GROWTH_MAX} %: {}. Where that is right, `cargo xtask guard --update`, \
         and say why in the commit",
        grown.join(", ")
    )))
}

/// In percent; counts are far below 2⁵².
#[allow(clippy::cast_precision_loss)]
fn growth(before: u64, now: u64) -> f64 {
    (now as f64 / before as f64 - 1.0) * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_what_valgrind_prints() {
        let printed = "==7== Events    : Ir\n==7== Collected : 123456\n==7== \n==7== I   refs:      123,456\n";
        assert_eq!(collected(printed), Some(123_456));
        assert_eq!(collected("valgrind: failed"), None);
    }

    #[test]
    fn growth_is_in_percent() {
        assert!((growth(200, 220) - 10.0).abs() < 1e-9);
        assert!((growth(200, 150) + 25.0).abs() < 1e-9);
    }
}
