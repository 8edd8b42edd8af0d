//! `cargo xtask soak`: processes and servers in a storm, and a verifier afterwards.

use crate::{
    machine,
    shell::{self, Result, cargo},
};

pub(crate) fn run(args: &[String]) -> Result {
    machine::need_c_compiler()?;
    // A log in a file needs none.
    if let Err(error) = machine::need_servers() {
        eprintln!("{error}");
    }
    shell::run(cargo(["run", "--quiet", "--package", "ergon-tests", "--bin", "soak", "--"]).args(args))
}
