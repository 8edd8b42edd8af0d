//! The project's own commands: `cargo xtask help`.
//!
//! Each command is a module with one function, `run`. [`shell`] runs programs and says so, [`machine`] looks at
//! what is installed, and installs what it may.

mod bench;
mod check;
mod fuzz;
mod guard;
mod links;
mod machine;
mod mutants;
mod shell;
mod sim;
mod soak;
mod test;

use std::process::ExitCode;

const HELP: &str = "\
The project's own commands. Run them anywhere in the repository.

  cargo xtask test [ARGS]     every test, the ones in the documentation too; ARGS go to `cargo test`
                              (`cargo xtask test -p ergon journal` runs a part)
  cargo xtask sim [ARGS]      run the engine on a virtual clock over a log that misbehaves, by 20,000 seeds
                              (`--seeds N`, `--first S`, ERGON_SIM_SEEDS=N; `--seed S` repeats one and tells it)
  cargo xtask soak [ARGS]     workers and clients on a file, Redis and PostgreSQL at one time, killed, stopped and cut off
                              at random for 20 minutes, and then a verifier (`--minutes N`, `--backend NAME`, `--seed S`)
  cargo xtask mutants [NAME]  plant known bugs, one at a time, and see whether the simulation finds them
  cargo xtask fuzz [TARGET]   let a fuzzer choose what comes from outside: a minute for each target, `--minutes N` for
                              more (address, import, macros, name, payload)
  cargo xtask check           formatting, lints, documentation and links to it, each feature alone, the oldest supported
                              Rust
  cargo xtask bench [ARGS]    measure ergon, the raw limit and the peers, in release mode; `cargo xtask bench --help`
  cargo xtask guard           count the instructions of the hot path and compare them with benches/baseline.json
  cargo xtask guard --update  count them and make them the baseline
  cargo xtask help            this text
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next();
    let args: Vec<String> = args.collect();
    let outcome = match command.as_deref() {
        Some("test") => test::run(&args),
        Some("sim") => sim::run(&args),
        Some("soak") => soak::run(&args),
        Some("mutants") => mutants::run(&args),
        Some("fuzz") => fuzz::run(&args),
        Some("check") => no_arguments("check", &args).and_then(|()| check::run()),
        Some("bench") => bench::run(&args),
        Some("guard") => guard::command(&args),
        Some("help" | "--help" | "-h") | None => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => Err(shell::Error::new(format!("there is no command {other:?}\n\n{HELP}"))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn no_arguments(command: &str, args: &[String]) -> shell::Result {
    match args.first() {
        None => Ok(()),
        Some(first) => Err(shell::Error::new(format!("`cargo xtask {command}` takes no arguments, got {first:?}"))),
    }
}
