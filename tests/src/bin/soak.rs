//! `cargo xtask soak [--minutes M] [--backend sqlite|redis|postgres]…`: see `ergon_tests::soak`.

use std::{path::Path, process::ExitCode, time::Duration};

use ergon_tests::soak::{self, Backend};
use futures::future::join_all;

const MINUTES: f64 = 20.0;
const HELP: &str = "\
usage: cargo xtask soak [--minutes M] [--backend sqlite|redis|postgres]... [--seed S]
       workers and clients on real servers, killed, stopped and cut off at random, 20 minutes on all three at one time
";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().expect("a number");
    match words[..] {
        ["--help" | "-h"] => print!("{HELP}"),
        ["worker", url, folder] => soak::work(url, Path::new(folder)).await,
        ["client", url, folder, one, of] => soak::ask(url, Path::new(folder), (number(one), number(of))).await,
        _ => match command(&words).await {
            Ok(code) => return code,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        },
    }
    ExitCode::SUCCESS
}

async fn command(words: &[&str]) -> Result<ExitCode, String> {
    let (mut minutes, mut backends, mut seed) = (MINUTES, Vec::new(), rand::random::<u32>().into());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or(HELP)?;
        match *word {
            "--minutes" => minutes = value.parse().map_err(|_| HELP)?,
            "--seed" => seed = value.parse().map_err(|_| HELP)?,
            "--backend" => backends.push(Backend::ALL.into_iter().find(|it| it.name() == *value).ok_or(HELP)?),
            _ => return Err(HELP.into()),
        }
    }
    if backends.is_empty() {
        backends.extend(Backend::ALL);
    }
    println!("{minutes} minutes, --seed {seed}");
    let time = Duration::try_from_secs_f64(minutes * 60.0).map_err(|error| error.to_string())?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let reports = join_all(backends.into_iter().map(async |backend| {
        let program = program.clone();
        // Servers are started and killed by calls that block.
        let soak = tokio::spawn(async move { soak::soak(&program, backend, time, seed).await });
        (backend, soak.await)
    }));
    let mut code = ExitCode::SUCCESS;
    for (backend, report) in reports.await {
        let name = backend.name();
        let Ok(report) = report else {
            println!("{name}: it did not come to its end");
            code = ExitCode::FAILURE;
            continue;
        };
        println!("{name}: {report}");
        for problem in &report.findings.problems {
            println!("  {problem}");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
