//! `cargo xtask soak`: processes and servers in a storm, and a verifier afterwards.

use crate::{
    machine,
    shell::{self, Result, cargo},
};

pub(crate) fn run(args: &[String]) -> Result {
    machine::need_c_compiler()?;
    machine::want_servers();
    shell::run(cargo(["run", "--quiet", "--package", "ergon-tests", "--bin", "soak", "--"]).args(args))
}
