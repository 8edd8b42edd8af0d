//! `cargo xtask bench`: builds the benchmark in release mode and runs it.

use crate::{
    machine,
    shell::{self, Result, cargo},
};

pub(crate) fn run(args: &[String]) -> Result {
    machine::need_c_compiler()?;
    machine::want_servers();
    shell::run(cargo(["run", "--profile", "bench", "--package", "ergon-benches", "--"]).args(args))
}
