//! `cargo xtask check`: what is looked at beside the tests.

use serde_json::Value;

use crate::{
    guard, links, machine,
    shell::{self, Error, Parts, Result, cargo, output},
};

const DENY: [&str; 3] = ["--", "-D", "warnings"];

pub(crate) fn run() -> Result {
    machine::need_c_compiler()?;
    machine::need_component("rustfmt", "fmt")?;
    machine::need_component("clippy", "clippy")?;
    let packages = packages()?;
    let mut parts = Parts::default();
    parts.run("formatting", || shell::run(&mut cargo(["fmt", "--all", "--check"])));
    parts.run("lints", || shell::run(cargo(["clippy", "--workspace", "--all-targets", "--all-features"]).args(DENY)));
    parts.run("documentation", || {
        let mut doc = cargo(["doc", "--workspace", "--no-deps", "--all-features"]);
        shell::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
    });
    parts.run("links to the documentation", links::check);
    parts
        .run("what the fuzzer runs", || shell::run(cargo(["clippy", "--manifest-path", "fuzz/Cargo.toml"]).args(DENY)));
    for Package { name, features } in packages.iter().filter(|package| !package.features.is_empty()) {
        parts.run(format!("{name} without features"), || shell::run(clippy_of(name).args(DENY)));
        for feature in features.iter().filter(|feature| *feature != "default") {
            parts.run(format!("{name} with {feature} alone"), || {
                shell::run(clippy_of(name).args(["--features", feature]).args(DENY))
            });
        }
    }
    oldest_rust(&mut parts);
    parts.run_or_skip("instructions of the hot path", || {
        guard::run(guard::Mode::Compare).map(|outcome| match outcome {
            guard::Outcome::Done => None,
            guard::Outcome::Skipped(why) => Some(why),
        })
    });
    parts.finish()
}

fn clippy_of(package: &str) -> std::process::Command {
    cargo(["clippy", "--package", package, "--no-default-features"])
}

/// The oldest Rust that we promise to build with, where rustup has it.
fn oldest_rust(parts: &mut Parts) {
    let version = env!("CARGO_PKG_RUST_VERSION");
    let name = format!("builds with Rust {version}");
    if !machine::has_toolchain(version) {
        parts.skip(name, format!("it is not installed; `rustup toolchain install {version} --profile minimal`"));
        return;
    }
    parts.run(name, || {
        // In a folder of its own: each would rebuild what the other has built.
        let args = ["run", version, "cargo", "check", "--workspace", "--all-features", "--target-dir", "target/oldest"];
        shell::run(
            std::process::Command::new("rustup").args(args).current_dir(shell::root()).env_remove("RUSTUP_TOOLCHAIN"),
        )
    });
}

struct Package {
    name: String,
    features: Vec<String>,
}

/// The packages of the workspace, with the features that their users can choose.
fn packages() -> Result<Vec<Package>> {
    let unreadable = || Error::new("`cargo metadata` does not tell the packages");
    let text = output(&mut cargo(["metadata", "--no-deps", "--format-version", "1"])).ok_or_else(unreadable)?;
    let metadata: Value = serde_json::from_str(&text).map_err(|_| unreadable())?;
    let package = |package: &Value| {
        let features = package["features"].as_object()?.keys().cloned().collect();
        Some(Package { name: package["name"].as_str()?.into(), features })
    };
    metadata["packages"].as_array().ok_or_else(unreadable)?.iter().map(|p| package(p).ok_or_else(unreadable)).collect()
}
