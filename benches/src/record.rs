//! Putting figures on record, between two marks: all of them in `benches/README.md`, with the machine, and those that help to
//! choose a log in `docs/backends.md`.

use std::{env::consts, fmt::Write, fs, io, process::Command, thread};

use crate::{cases::Scale, plots, plots::Plot, repository};

const BEGIN: &str = "<!-- figures: written by `cargo xtask bench --record` -->\n";
const END: &str = "<!-- end of figures -->\n";

const README: &str = "benches/README.md";
const BACKENDS: &str = "docs/backends.md";

/// Replaces the figures that are on record.
pub(crate) fn figures(scale: Scale, rounds: u32, tables: &str, by_log: &str, drawn: &[Plot]) -> io::Result<()> {
    plots::write(drawn, &repository().join("benches/plots"))?;
    let quick = if scale == Scale::Quick { "`--quick`, " } else { "" };
    let mut figures = format!("\n{quick}{rounds} rounds, on {}.\n{tables}\n", machine());
    for Plot { name, title, .. } in drawn {
        let _ = writeln!(figures, "![{title}](plots/{name}.svg)\n");
    }
    for (file, figures) in [(README, figures), (BACKENDS, format!("\n{by_log}\n"))] {
        let path = repository().join(file);
        let text = replaced(&fs::read_to_string(&path)?, &figures)
            .ok_or_else(|| io::Error::other(format!("{file} has no marks to write between")))?;
        fs::write(path, text)?;
    }
    Ok(())
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
        for file in [README, BACKENDS] {
            let text = fs::read_to_string(repository().join(file)).unwrap();
            assert!(replaced(&text, "").is_some(), "{file}");
        }
    }
}
