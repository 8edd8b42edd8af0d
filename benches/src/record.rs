//! Putting figures on record: in `benches/README.md`, between two marks, with the machine.

use std::{env::consts, fmt::Write, fs, io, process::Command, thread};

use crate::{cases::Scale, plots, plots::Plot, repository};

const BEGIN: &str = "<!-- figures: written by `cargo xtask bench --record` -->\n";
const END: &str = "<!-- end of figures -->\n";

/// Replaces the figures that are on record.
pub(crate) fn figures(scale: Scale, rounds: u32, tables: &str, drawn: &[Plot]) -> io::Result<()> {
    let benches = repository().join("benches");
    plots::write(drawn, &benches.join("plots"))?;
    let readme = benches.join("README.md");
    let quick = if scale == Scale::Quick { "`--quick`, " } else { "" };
    let mut figures = format!("\n{quick}{rounds} rounds, on {}.\n{tables}\n", machine());
    for Plot { name, title, .. } in drawn {
        let _ = writeln!(figures, "![{title}](plots/{name}.svg)\n");
    }
    let text = replaced(&fs::read_to_string(&readme)?, &figures)
        .ok_or_else(|| io::Error::other(format!("{} has no marks to write between", readme.display())))?;
    fs::write(readme, text)
}

/// The text with this between the marks.
fn replaced(text: &str, figures: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{figures}{END}{after}"))
}

/// What it was measured on, as far as the system tells.
fn machine() -> String {
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim()));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    let gib = kib.map(|kib: u64| format!(", {} GiB of memory", kib.div_ceil(1 << 20))).unwrap_or_default();
    let compiler = Command::new("rustc").arg("--version").output().ok();
    let compiler = compiler.and_then(|output| String::from_utf8(output.stdout).ok()).unwrap_or_default();
    format!("{cores} cores ({}){gib}, {} {}, {}", model.unwrap_or("unknown"), consts::OS, consts::ARCH, compiler.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_stands_between_the_marks_is_replaced() {
        let text = format!("before\n{BEGIN}old\n{END}after\n");
        assert_eq!(replaced(&text, "new\n").unwrap(), format!("before\n{BEGIN}new\n{END}after\n"));
        assert_eq!(replaced("no marks", "new"), None);
        let readme = fs::read_to_string(repository().join("benches/README.md")).unwrap();
        assert!(replaced(&readme, "").is_some());
    }
}
