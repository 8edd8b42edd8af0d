//! What must be on the machine beside cargo, and how to get it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::shell::{self, Error, Result, output, run};

/// A C compiler: Rust links with it, and SQLite is compiled from its source.
pub(crate) fn need_c_compiler() -> Result {
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    if is_there(&compiler) {
        return Ok(());
    }
    if compiler == "cc" && can_install() {
        eprintln!("there is no C compiler; installing one");
        install(&["gcc", "libc6-dev"])?;
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

/// The servers, for a command that goes on without those that are not to be had.
pub(crate) fn want_servers() {
    if let Err(error) = need_servers() {
        eprintln!("{error}");
    }
}

/// The servers that tests start for themselves.
pub(crate) fn need_servers() -> Result {
    let missing = || -> Vec<&str> {
        let mut packages = Vec::new();
        packages.extend((!has_redis()).then_some("redis-server"));
        packages.extend((!has_postgres()).then_some("postgresql"));
        packages.extend((!has_pgbouncer()).then_some("pgbouncer"));
        packages
    };
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    if can_install() {
        eprintln!("tests start database servers; installing {}", packages.join(", "));
        install(&packages)?;
    }
    let packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!(
        "tests start servers of their own, and these programs are not there: {}. Install them: `sudo apt-get install \
         redis-server postgresql pgbouncer` (Debian, Ubuntu), `sudo dnf install redis postgresql-server pgbouncer` \
         (Fedora), `brew install redis postgresql@17 pgbouncer` (macOS); nothing has to be configured or running",
        packages.join(", ")
    )))
}

fn has_redis() -> bool {
    is_there("redis-server") || is_there("valkey-server")
}

/// Debian keeps it where only root looks.
fn has_pgbouncer() -> bool {
    is_there("pgbouncer") || is_there("/usr/sbin/pgbouncer")
}

/// Debian keeps the server out of `PATH`.
fn has_postgres() -> bool {
    let said = output(Command::new("pg_config").arg("--bindir")).map(|folder| PathBuf::from(folder.trim()));
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let versions = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    is_there("postgres") || said.into_iter().chain(versions).any(|folder| folder.join("postgres").exists())
}

/// True when valgrind is there, or could be installed.
pub(crate) fn has_valgrind() -> bool {
    if !is_there("valgrind") && can_install() {
        eprintln!("there is no valgrind; installing it");
        // What does not succeed is seen right below.
        let _ = install(&["valgrind"]);
    }
    is_there("valgrind")
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

/// The subcommand of cargo that runs a fuzzer.
pub(crate) fn need_cargo_fuzz() -> Result {
    if output(&mut shell::cargo(["fuzz", "--version"])).is_some() {
        return Ok(());
    }
    eprintln!("there is no `cargo fuzz`; installing it");
    run(&mut shell::cargo(["install", "--locked", "cargo-fuzz"]))
}

/// True when rustup has this toolchain.
pub(crate) fn has_toolchain(version: &str) -> bool {
    output(Command::new("rustup").args(["toolchain", "list"]))
        .is_some_and(|list| list.lines().any(|line| line.starts_with(version)))
}

/// True where [`install`] works.
fn can_install() -> bool {
    Path::new("/etc/debian_version").exists() && is_root()
}

fn install(packages: &[&str]) -> Result {
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages);
    run(install.env("DEBIAN_FRONTEND", "noninteractive"))
}

fn is_there(program: &str) -> bool {
    output(Command::new(program).arg("--version")).is_some()
}

fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_some_and(|id| id.trim() == "0")
}
