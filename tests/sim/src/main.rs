//! `cargo xtask sim [--seeds N] [--first S] | --seed S`.

use std::{process::ExitCode, time::Instant};

const SEEDS: u64 = 20_000;
const HELP: &str = "\
usage: cargo xtask sim [--seeds N] [--first S]   runs so many seeds, 20,000 unless ERGON_SIM_SEEDS says otherwise
       cargo xtask sim --seed S                  runs one and tells what happens; if it fails, made smaller
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match command(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn command(args: &[String]) -> Result<(), String> {
    let number =
        |text: &str| text.replace('_', "").parse::<u64>().map_err(|_| format!("{text:?} is no number\n{HELP}"));
    let mut seeds = match std::env::var("ERGON_SIM_SEEDS") {
        Ok(text) => number(&text)?,
        Err(_) => SEEDS,
    };
    let (mut first, mut one) = (0, None);
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let value = args.next().ok_or(HELP)?;
        match arg.as_str() {
            "--seeds" => seeds = number(value)?,
            "--first" => first = number(value)?,
            "--seed" => one = Some(number(value)?),
            _ => return Err(HELP.into()),
        }
    }
    if let Some(seed) = one {
        print!("{}", ergon_sim::run_seed(seed)?);
        println!("seed {seed} breaks no law");
        return Ok(());
    }
    let began_at = Instant::now();
    ergon_sim::run_seeds(first, seeds)?;
    println!("{seeds} seeds from {first} break no law, in {:.0} s", began_at.elapsed().as_secs_f64());
    Ok(())
}
