//! `cargo xtask fuzz`: a fuzzer chooses what comes from outside.

use crate::{
    machine,
    shell::{self, Error, Parts, Result, cargo, root},
};

/// What `fuzz/Cargo.toml` names.
const TARGETS: [&str; 5] = ["address", "import", "macros", "name", "payload"];
/// What one input may take, and be long, before it counts as a finding.
const LIMITS: [&str; 4] = ["-timeout=20", "-max_len=16384", "-rss_limit_mb=4096", "-print_final_stats=1"];

struct Options {
    targets: Vec<&'static str>,
    seconds: u64,
}

pub(crate) fn run(args: &[String]) -> Result {
    let Options { targets, seconds } = Options::parse(args)?;
    machine::need_c_compiler()?;
    machine::need_cargo_fuzz()?;
    let corpus = root().join("fuzz").join("corpus");
    let mut seeds = cargo(["run", "--quiet", "--package", "ergon-tests", "--bin", "fuzz-seeds", "--"]);
    shell::run(seeds.arg(&corpus))?;
    let mut parts = Parts::default();
    for target in targets {
        parts.run(target, || {
            // Without a sanitizer it needs no nightly compiler; the project's own code has no `unsafe` in it.
            let mut fuzz = cargo(["fuzz", "run", "--sanitizer", "none", target, "--"]);
            let dictionary = corpus.join(format!("{target}.dict"));
            fuzz.args(dictionary.exists().then(|| format!("-dict={}", dictionary.display())));
            shell::run(fuzz.args(LIMITS).arg(format!("-max_total_time={seconds}")))
        });
    }
    parts.finish()
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let mut targets = Vec::new();
        let mut minutes = 1;
        let mut args = args.iter().map(String::as_str);
        while let Some(arg) = args.next() {
            if arg == "--minutes" {
                let given = args.next().and_then(|minutes| minutes.parse().ok()).filter(|minutes| *minutes > 0);
                minutes = given.ok_or_else(|| Error::new("`--minutes` takes a whole number from 1"))?;
            } else if let Some(target) = TARGETS.into_iter().find(|target| *target == arg) {
                targets.push(target);
            } else {
                return Err(Error::new(format!("there is no target {arg:?}, only {}", TARGETS.join(", "))));
            }
        }
        if targets.is_empty() {
            targets.extend(TARGETS);
        }
        Ok(Self { targets, seconds: 60 * minutes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_is_built() {
        let manifest = std::fs::read_to_string(root().join("fuzz").join("Cargo.toml")).unwrap();
        for target in TARGETS {
            assert!(manifest.contains(&format!("name = {target:?}")), "{target} is not in fuzz/Cargo.toml");
        }
        assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
    }

    #[test]
    fn options_are_read_or_refused() {
        let parse = |args: &[&str]| Options::parse(&args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>());
        assert_eq!(parse(&[]).unwrap().targets, TARGETS);
        let options = parse(&["import", "--minutes", "7"]).unwrap();
        assert_eq!((options.targets, options.seconds), (vec!["import"], 420));
        for wrong in [&["exports"][..], &["--minutes"], &["--minutes", "0"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
