//! Processes whose machine has another time.

use std::{path::Path, process::Command};

/// The library that moves a process's clock.
const SOURCE: &str = include_str!("skew.c");

/// The variables that let a process, started with them, read a clock that is ahead by so many seconds, or behind.
/// The library for it is compiled into the folder, which must last as long as the process.
///
/// # Panics
///
/// When there is no C compiler.
#[must_use]
pub fn skewed(folder: &Path, seconds: i64) -> [(&'static str, String); 2] {
    let (source, library) = (folder.join("skew.c"), folder.join("skew.so"));
    if !library.exists() {
        std::fs::write(&source, SOURCE).expect("a folder to write to");
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
        let mut compile = Command::new(compiler);
        compile.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
        assert!(compile.status().expect("there is a C compiler").success(), "{compile:?}");
    }
    [("LD_PRELOAD", library.display().to_string()), ("ERGON_TEST_SKEW_SECONDS", seconds.to_string())]
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    /// Seconds since the epoch, as a process reads them.
    fn read(variables: &[(&str, String)]) -> i64 {
        let mut date = Command::new("date");
        let output = date.arg("+%s").envs(variables.iter().map(|(name, value)| (name, value))).output();
        String::from_utf8_lossy(&output.expect("date runs").stdout).trim().parse().expect("seconds")
    }

    #[test]
    fn a_process_reads_another_time() {
        let folder = tempfile::tempdir().expect("a folder");
        for seconds in [-300, 300] {
            let read = read(&skewed(folder.path(), seconds)) - read(&[]) - seconds;
            assert!((-60..=0).contains(&read), "{read} s off");
        }
    }
}
