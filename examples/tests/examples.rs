//! Runs the examples as a user would, as processes, and looks at what they print.
//!
//! `cargo test -p ergon-examples` builds them first.

use std::{
    fmt::Write,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// The longest that one run may take, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// An example's program, beside the one of this test.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let program = profile.join("examples").join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    assert!(
        program.is_file(),
        "{} is missing: build it with cargo test -p ergon-examples, without --test",
        program.display()
    );
    program
}

/// A run of an example, whose output goes to a file: a pipe would stay open while its children live.
struct Run {
    child: Child,
    output: PathBuf,
    _folder: tempfile::TempDir,
}

/// How a run ended, and what it printed.
struct Ended {
    success: bool,
    text: String,
}

impl Run {
    fn start(name: &str, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("output.txt");
        let file = File::create(&output).unwrap();
        let child = Command::new(program(name))
            .args(args)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, output, _folder: folder }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.output).unwrap()
    }

    /// Waits for the end.
    fn end(mut self) -> Ended {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Ended { success: status.success(), text: self.text() };
            }
            if started.elapsed() > LIMIT {
                self.child.kill().unwrap();
                panic!("still running after {LIMIT:?}, having printed:\n{}", self.text());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills it after a while. False when it had ended by itself.
    fn kill_after(mut self, delay: Duration) -> bool {
        thread::sleep(delay);
        let runs = self.child.try_wait().unwrap().is_none();
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        runs
    }
}

#[track_caller]
fn run(name: &str, args: &[&str]) -> String {
    let Ended { success, text } = Run::start(name, args).end();
    assert!(success, "{name} {args:?} failed:\n{text}");
    text
}

#[track_caller]
fn refuse(name: &str, args: &[&str]) -> String {
    let Ended { success, text } = Run::start(name, args).end();
    assert!(!success, "{name} {args:?} was accepted:\n{text}");
    text
}

#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "there is no {part:?} in:\n{text}");
    }
}

/// The number before a word.
#[track_caller]
fn number_before(text: &str, word: &str) -> u64 {
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|other| other.trim_end_matches([',', ';']) == word);
    let number = at.and_then(|at| words.get(at.checked_sub(1)?)).map(|number| number.replace(',', ""));
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number before {word:?} in:\n{text}"))
}

#[test]
fn order_runs_and_answers_again() {
    let timeline = [
        "attempt 3, key",
        "Receipt { payment: \"payment 4711\"",
        "Order \"order-7\" (version 1): completed",
        "attempt 2 failed",
        "at attempt 3",
        "timer    4 sleep",
        "fired",
        "signal   5 approval",
        "completed  {\"payment\"",
    ];
    has(&run("order", &[]), &timeline);

    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("orders.db");
    let db = db.to_str().unwrap();
    has(&run("order", &[db]), &timeline);
    let again = run("order", &[db]);
    has(&again, &["Receipt { payment: \"payment 4711\""]);
    assert!(!again.contains("charge: 2400"), "a step ran again:\n{again}");
}

#[test]
fn order_goes_on_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("orders.db");
    let db = db.to_str().unwrap();
    // The flow sleeps for a second, after its first steps.
    let first = Run::start("order", &[db]);
    let started = Instant::now();
    while !first.text().contains("attempt 3") && started.elapsed() < LIMIT {
        thread::sleep(Duration::from_millis(10));
    }
    assert!(first.kill_after(Duration::from_millis(200)));
    let second = run("order", &[db]);
    has(&second, &["ship: with label 8", "Order \"order-7\" (version 1): completed"]);
    assert!(!second.contains("reserve: one"), "a recorded step ran again:\n{second}");
}

#[test]
fn fan_out_joins_its_children() {
    let text = run("fan_out", &[]);
    has(
        &text,
        &[
            "atlantis: there is no such city",
            "oslo: 400000 people",
            "Report \"report-2024\" (version 1): completed",
            "started report-2024/8",
            "started report-2024/archive on its own",
            "the archive says: 8 cities archived",
        ],
    );
}

#[test]
fn approval_ends_in_three_ways() {
    let text = run("approval", &[]);
    has(
        &text,
        &[
            "train: Approved { by: \"ada\" }",
            "yacht: cancelled, bought by mistake",
            "hotel: Escalated { to: \"the head of finance\" }",
            "a late answer: flow \"hotel\": the flow is completed already",
            "did not come in time",
            "Expense \"yacht\" (version 1): cancelled",
        ],
    );
}

#[test]
fn workers_take_over() {
    let text = run("workers", &[]);
    has(&text, &["bob was killed (SIGKILL)", "all 60 flows completed"]);
    assert!(number_before(&text, "of") > 0, "nothing was taken over:\n{text}");
}

#[test]
fn crash_breaks_no_promise() {
    let text = run("crash", &[]);
    has(&text, &["kill  3:", "flows completed             150\n", "violations                    0 "]);
}

/// A folder with files of all kinds; returns how many.
fn make_tree(folder: &Path) -> u64 {
    const FILES: u32 = 300;
    let mut seed = 1_u32;
    for number in 0..FILES {
        let place = folder.join(format!("part-{}", number % 7));
        fs::create_dir_all(&place).unwrap();
        let mut text = String::new();
        for _ in 0..200 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            write!(text, "word{} ", (seed >> 16) % 500).unwrap();
        }
        fs::write(place.join(format!("{number}.txt")), text).unwrap();
    }
    fs::write(folder.join("binary"), b"a\0b").unwrap();
    fs::write(folder.join("empty"), b"").unwrap();
    fs::write(folder.join("huge"), vec![b'x'; 3 << 20]).unwrap();
    u64::from(FILES) + 3
}

/// The last line of the status: the digest.
fn digest(db: &str) -> String {
    let status = run("ingest", &["status", "--db", db, "--check"]);
    let digest = status.lines().find_map(|line| line.strip_prefix("digest")).map(str::trim);
    digest.unwrap_or_else(|| panic!("no digest in:\n{status}")).to_owned()
}

#[test]
fn ingest_is_the_same_however_often_it_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    let files = make_tree(&tree);
    let db = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (calm, rough, fresh) = (db("calm.db"), db("rough.db"), db("fresh.db"));
    let tree_arg = tree.to_str().unwrap();

    let text = run("ingest", &["index", tree_arg, "--db", &calm]);
    assert_eq!(number_before(&text, "new"), files, "{text}");
    has(&text, &["skipped    1: binary", "skipped    1: larger than 2 MiB"]);

    // Killed when some files are done and some are not.
    let mut kills = 0;
    while kills < 2 {
        let run_again = Run::start("ingest", &["index", tree_arg, "--db", &rough]);
        let started = Instant::now();
        let before = done(&rough);
        while done(&rough) == before && started.elapsed() < LIMIT {
            thread::sleep(Duration::from_millis(1));
        }
        if !run_again.kill_after(Duration::ZERO) {
            break;
        }
        kills += 1;
    }
    assert!(kills > 0, "the run was over before it could be killed");
    let text = run("ingest", &["index", tree_arg, "--db", &rough]);
    has(&text, &["indexed    301, with"]);
    let status = run("ingest", &["status", "--db", &rough]);
    assert_eq!(number_before(&status, "done"), files, "{status}");
    assert_eq!(digest(&calm), digest(&rough));
    for words in [["word7", "word8"], ["word1", "word499"]] {
        let search = |db: &str| run("ingest", &["search", words[0], words[1], "--db", db, "--limit", "100"]);
        let found = search(&calm);
        assert!(found.lines().count() > 20, "{found}");
        assert_eq!(found, search(&rough));
    }

    // Again, after changes: only these are worked on, and the index is as a fresh one.
    fs::write(tree.join("part-0/0.txt"), "something else").unwrap();
    fs::write(tree.join("part-1/new.txt"), "something new").unwrap();
    fs::remove_file(tree.join("part-2/2.txt")).unwrap();
    let text = run("ingest", &["index", tree_arg, "--db", &rough]);
    has(&text, &["2 new or changed, 301 as before, 1 gone"]);
    run("ingest", &["index", tree_arg, "--db", &fresh]);
    assert_eq!(digest(&rough), digest(&fresh));
    assert_ne!(digest(&rough), digest(&calm));
}

/// How many files are done; 0 as long as there are no databases.
fn done(db: &str) -> u64 {
    let Ended { success, text } = Run::start("ingest", &["status", "--db", db]).end();
    if success { number_before(&text, "done") } else { 0 }
}

#[test]
fn ingest_by_two_processes_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    let files = make_tree(&tree);
    let db = folder.path().join("two.db");
    let index = ["index", tree.to_str().unwrap(), "--db", db.to_str().unwrap()];
    let two = [Run::start("ingest", &index), Run::start("ingest", &index)];
    for run in two {
        let Ended { success, text } = run.end();
        assert!(success, "{text}");
        has(&text, &["indexed    301, with"]);
    }
    assert_eq!(done(db.to_str().unwrap()), files);
}

#[test]
fn ingest_refuses_bad_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("text"), "a".repeat(5_000)).unwrap();
    let (here, db) = (path("."), path("x.db"));

    has(&refuse("ingest", &["index", &path("nowhere"), "--db", &db]), &["error:", "nowhere"]);
    has(&refuse("ingest", &["index", &path("text"), "--db", &db]), &["error:", "text", "folder"]);
    has(&refuse("ingest", &["index", &here, "--db", &path("none/x.db")]), &["error:", "does not exist"]);
    has(&refuse("ingest", &["index", &here, "--db", &here]), &["error:", "is a directory"]);
    has(&refuse("ingest", &["index", &here, "--db", &path("text")]), &["error:", "not an SQLite database"]);
    has(&refuse("ingest", &["search", "word", "--db", &db]), &["error:", "no such file"]);
    has(&refuse("ingest", &["status", "--db", &db]), &["error:", "no such file"]);
    assert!(!Path::new(&db).exists(), "a refused command made the file");
}
