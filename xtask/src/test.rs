//! `cargo xtask test`: the one test command.

use crate::{
    machine,
    shell::{self, Parts, Result, cargo},
    sim,
};

/// Everything at once and with every feature, so that all parts share one build.
const EVERYTHING: [&str; 2] = ["--workspace", "--all-features"];

pub(crate) fn run(args: &[String]) -> Result {
    machine::need_c_compiler()?;
    if args.is_empty() { everything() } else { a_part(args) }
}

fn everything() -> Result {
    let mut parts = Parts::default();
    parts.run("servers to test on", machine::need_servers);
    parts.run("examples build (some tests run them)", build_examples);
    parts.run("tests", || shell::run(cargo(["test", "--no-fail-fast"]).args(EVERYTHING)));
    parts.run("simulation", || sim::run(&[]));
    parts.finish()
}

fn a_part(args: &[String]) -> Result {
    // The part may need none.
    if let Err(error) = machine::need_servers() {
        eprintln!("{error}");
    }
    build_examples()?;
    let mut command = cargo(["test", "--all-features"]);
    // Packages that are named by hand stand instead of all.
    let before_dashes = args.split(|arg| arg == "--").next().unwrap_or_default();
    if !before_dashes.iter().any(|arg| arg.starts_with("-p") || arg.starts_with("--package") || arg == "--workspace") {
        command.arg("--workspace");
    }
    shell::run(command.args(args))
}

fn build_examples() -> Result {
    shell::run(cargo(["build", "--examples"]).args(EVERYTHING))
}
