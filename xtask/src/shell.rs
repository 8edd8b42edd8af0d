//! Running programs, visibly.

use std::{
    env, fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

/// Why a command of ours did not succeed, for people to read.
#[derive(Debug)]
pub(crate) struct Error(String);

pub(crate) type Result<T = ()> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    // At run time cargo says where the package is, also after the repository was moved.
    let package = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The cargo that runs us, with arguments, in the root.
pub(crate) fn cargo<S: AsRef<str>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    for arg in args {
        command.arg(arg.as_ref());
    }
    if in_ci() {
        // A machine that builds once gains nothing from incremental builds.
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

/// True where the machine only checks: the variable `CI` is set.
pub(crate) fn in_ci() -> bool {
    env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false" && value != "0")
}

/// Says what is run, runs it, and fails when it fails.
pub(crate) fn run(command: &mut Command) -> Result {
    let shown = shown(command);
    eprintln!("$ {shown}");
    let status = command.status().map_err(|error| Error::new(format!("`{shown}` could not be started: {error}")))?;
    if status.success() { Ok(()) } else { Err(Error::new(format!("`{shown}` failed ({status})"))) }
}

/// Runs something quietly; what it printed, or `None` when it failed or is not there.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it.
fn shown(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| Some((name, value?)));
    let set = set.map(|(name, value)| format!("{}={}", name.to_string_lossy(), quoted(&value.to_string_lossy())));
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
    let args = command.get_args().map(|arg| quoted(&arg.to_string_lossy()));
    set.chain([program]).chain(args).collect::<Vec<_>>().join(" ")
}

fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:,+@".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.into() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// The parts of a command of ours, each timed, for the summary at its end.
#[derive(Debug, Default)]
pub(crate) struct Parts(Vec<(String, Outcome)>);

#[derive(Debug)]
enum Outcome {
    Ok { seconds: u64 },
    Failed { error: Error },
    Skipped { why: String },
}

impl Parts {
    /// Does a part; the others are done even when it fails.
    pub(crate) fn run(&mut self, name: impl Into<String>, part: impl FnOnce() -> Result) {
        self.run_or_skip(name, || part().map(|()| None));
    }

    /// Does a part that may find out that this machine cannot do it, and then says why.
    pub(crate) fn run_or_skip(&mut self, name: impl Into<String>, part: impl FnOnce() -> Result<Option<String>>) {
        let start = Instant::now();
        let outcome = match part() {
            Ok(Some(why)) => Outcome::Skipped { why },
            Ok(None) => Outcome::Ok { seconds: start.elapsed().as_secs() },
            Err(error) => {
                eprintln!("xtask: {error}");
                Outcome::Failed { error }
            }
        };
        self.0.push((name.into(), outcome));
    }

    /// Notes a part that cannot be done on this machine.
    pub(crate) fn skip(&mut self, name: impl Into<String>, why: impl Into<String>) {
        self.0.push((name.into(), Outcome::Skipped { why: why.into() }));
    }

    /// Prints the summary, and fails when a part has.
    pub(crate) fn finish(self) -> Result {
        eprintln!();
        let mut failed = 0;
        for (name, outcome) in &self.0 {
            match outcome {
                Outcome::Ok { seconds } => eprintln!("ok       {name} ({seconds} s)"),
                Outcome::Skipped { why } => eprintln!("skipped  {name}: {why}"),
                Outcome::Failed { error } => {
                    failed += 1;
                    eprintln!("FAILED   {name}: {error}");
                }
            }
        }
        match failed {
            0 => Ok(()),
            _ => Err(Error::new(format!("{failed} of {} failed", self.0.len()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_one_would_type_them() {
        let mut command = Command::new("/usr/bin/cargo");
        command.args(["doc", "it's"]).env("RUSTDOCFLAGS", "-D warnings");
        assert_eq!(shown(&command), r"RUSTDOCFLAGS='-D warnings' cargo doc 'it'\''s'");
    }

    #[test]
    fn a_failed_part_fails_the_whole_but_not_the_others() {
        let mut parts = Parts::default();
        parts.run("first", || Err(Error::new("broken")));
        parts.run("second", || Ok(()));
        assert_eq!(parts.finish().unwrap_err().to_string(), "1 of 2 failed");
    }
}
