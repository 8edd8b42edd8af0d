//! Valid input for a fuzzer to begin with: `fuzz-seeds FOLDER` writes a file each into a folder for each target, and
//! the words that lines to be imported are made of into `import.dict`.

use std::{collections::BTreeSet, fmt::Write as _, fs, path::Path};

use ergon_tests::outside;

const ADDRESSES: [&str; 4] = [
    "redis://localhost",
    "rediss://ada:secret@db.example.com:6379/0",
    "postgres://user:password@host:5432/database?sslmode=require",
    "postgresql://host/db?connect_timeout=10",
];
const NAMES: [&str; 3] = ["1", "4294967295.2.7", "order 7"];
const PAYLOADS: [&str; 2] = [r#"{"address":"here","lines":[1,2,3]}"#, r#"{"address":"nowhere","lines":[]}"#];
const MACROS: [&str; 7] = [
    "1h 30m",
    "100ms..30s",
    "\n#[derive(Clone)] struct Order { id: String, cents: u64 }",
    "name = \"Order\", version = 3\nimpl Order { #[flow(timeout = \"1h\")] async fn run(&self) -> Result<u8, String> { \
     let (a, b) = tokio::join!(self.charge(1), signal::<u8>(\"go\")); sleep(SECOND).await; a } \
     #[step(retry(max_attempts = 3))] async fn charge(&self, cents: u64) -> Result<u64, String> { Ok(cents) } }",
    "retry(max_attempts = 5, backoff = \"1s..30s\", multiplier = 2.0, jitter = 0.1), timeout = \"10s\"\n\
     async fn fetch(url: String, (a, b): (u8, u8)) -> ergon::Result<Vec<u8>> { Ok(vec![a, b]) }",
    "transaction\nfn pay(tx: &Transaction<'_>, cents: i64) -> ergon::Result<()> { Ok(()) }",
    "at_most_once, heartbeat_timeout = \"5s\"\npub(crate) async fn nightly(day: Date) -> Result<(), String> { Ok(()) }",
];

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() {
    let folder = std::env::args_os().nth(1).expect("the folder to write into");
    let folder = Path::new(&folder);
    write(folder, "address", &ADDRESSES);
    let lines = outside::exported().await;
    write(folder, "import", &lines);
    fs::write(folder.join("import.dict"), words(&lines)).expect("a file for the words");
    write(folder, "macros", &MACROS);
    write(folder, "name", &NAMES);
    write(folder, "payload", &PAYLOADS);
}

fn write(folder: &Path, target: &str, seeds: &[impl AsRef<str>]) {
    let folder = folder.join(target);
    fs::create_dir_all(&folder).expect("a folder for the seeds");
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(folder.join(format!("valid-{number}")), seed.as_ref()).expect("a file for the seed");
    }
}

/// What stands in quotes, as libFuzzer reads it.
fn words(lines: &[String]) -> String {
    let quoted = lines.iter().flat_map(|line| line.split('"').skip(1).step_by(2));
    let words: BTreeSet<_> = quoted.filter(|word| word.len() <= 32 && !word.contains('\\')).collect();
    let mut lines = String::new();
    for word in words {
        let _ = writeln!(lines, "\"\\\"{word}\\\"\"");
    }
    lines
}
