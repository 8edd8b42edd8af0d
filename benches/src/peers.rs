//! The peers' programs, which are built when they are asked for.
//!
//! Each is a package of its own under `benches/peers`, outside the workspace, for they bring native SQLite libraries
//! that cannot be linked into one program.

use std::{
    collections::BTreeMap,
    env, io,
    path::{Path, PathBuf},
    process::Command,
};

use ergon_bench_round::System;

use crate::repository;

/// The package that does a system's rounds.
fn package(system: System) -> Option<&'static str> {
    match system {
        System::Ergon | System::Raw => None,
        System::Duroxide => Some("duroxide"),
        System::Durare | System::DurareQueue => Some("durare"),
        System::Dbos | System::DbosQueue => Some("dbos"),
        System::Effectum | System::EffectumWal => Some("effectum"),
        System::Apalis => Some("apalis"),
    }
}

/// The programs that run rounds.
#[derive(Debug)]
pub(crate) struct Programs {
    ours: PathBuf,
    peers: BTreeMap<&'static str, Option<PathBuf>>,
}

impl Programs {
    /// Builds those of these systems that are not this one.
    pub(crate) fn build(systems: impl Iterator<Item = System>) -> io::Result<Self> {
        let mut programs = Self { ours: env::current_exe()?, peers: BTreeMap::new() };
        for package in systems.filter_map(package) {
            programs.peers.entry(package).or_insert_with(|| build(package));
        }
        Ok(programs)
    }

    /// The program of a system; `None` where it could not be built.
    pub(crate) fn find(&self, system: System) -> Option<&Path> {
        match package(system) {
            None => Some(&self.ours),
            Some(package) => self.peers.get(package)?.as_deref(),
        }
    }

    /// The peers that could not be built.
    pub(crate) fn missing(&self) -> impl Iterator<Item = &'static str> {
        self.peers.iter().filter(|(_, program)| program.is_none()).map(|(package, _)| *package)
    }
}

fn build(package: &str) -> Option<PathBuf> {
    eprintln!("building the peer {package} …");
    let target = repository().join("target/peers");
    match cargo(package, &target) {
        Ok(status) if status.success() => return Some(target.join("release").join(format!("bench-{package}"))),
        Ok(status) => eprintln!("the peer {package} could not be built ({status}); is there a network?"),
        Err(error) => eprintln!("the peer {package} could not be built: {error}"),
    }
    None
}

fn cargo(package: &str, target: &Path) -> io::Result<std::process::ExitStatus> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--release", "--locked", "--quiet", "--target-dir"]).arg(target);
    command.current_dir(repository().join("benches/peers").join(package)).status()
}
