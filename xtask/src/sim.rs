//! `cargo xtask sim`: the simulation.

use crate::shell::{self, Result, cargo};

/// Built by itself, in a profile of its own: fast, with all assertions, and without the logs on disks and servers.
pub(crate) const BUILT: [&str; 4] = ["--profile", "sim", "--package", "ergon-sim"];

pub(crate) fn run(args: &[String]) -> Result {
    shell::run(cargo(["run", "--quiet"]).args(BUILT).arg("--").args(args))
}
