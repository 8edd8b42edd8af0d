//! What must be on the machine beside cargo, and how to get it.

use std::{env, path::Path, process::Command};

use crate::shell::{self, Error, Result, output, run};

/// A C compiler: Rust links with it, and SQLite is compiled from its source.
pub(crate) fn need_c_compiler() -> Result {
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    if is_there(&compiler) {
        return Ok(());
    }
    if compiler == "cc" && Path::new("/etc/debian_version").exists() && is_root() {
        eprintln!("there is no C compiler; installing one");
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        run(Command::new("apt-get").args(["install", "-y", "-qq", "--no-install-recommends", "gcc", "libc6-dev"]))?;
        if is_there(&compiler) {
            return Ok(());
        }
    }
    Err(Error::new(format!(
        "there is no C compiler `{compiler}`, which links programs and compiles the bundled SQLite. Install one: \
         `sudo apt-get install gcc libc6-dev` (Debian, Ubuntu), `sudo dnf install gcc` (Fedora), \
         `xcode-select --install` (macOS)"
    )))
}

/// A component of the Rust toolchain, added where rustup can.
pub(crate) fn need_component(component: &str, subcommand: &str) -> Result {
    if output(&mut shell::cargo([subcommand, "--version"])).is_some() {
        return Ok(());
    }
    if output(Command::new("rustup").arg("--version")).is_some() {
        return run(Command::new("rustup").args(["component", "add", component]));
    }
    Err(Error::new(format!(
        "`cargo {subcommand}` is not there, and there is no rustup to add it with; install the component {component}"
    )))
}

/// True when rustup has this toolchain.
pub(crate) fn has_toolchain(version: &str) -> bool {
    output(Command::new("rustup").args(["toolchain", "list"]))
        .is_some_and(|list| list.lines().any(|line| line.starts_with(version)))
}

fn is_there(program: &str) -> bool {
    output(Command::new(program).arg("--version")).is_some()
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_some_and(|id| id.trim() == "0")
}
