//! Runs the examples as a user would, as processes, and looks at what they print.
//!
//! `cargo test -p ergon-examples` builds them first.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use ergon::{FlowId, FlowState};
use ergon_test_servers::{Persistence, Postgres, Redis};

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

    /// Waits until it has printed this.
    #[track_caller]
    fn until_prints(&mut self, part: &str) {
        let started = Instant::now();
        // What it printed before its end is looked at once more after it.
        let mut ended = false;
        while !self.text().contains(part) {
            let text = self.text();
            assert!(!ended, "it has ended without printing {part:?}:\n{text}");
            assert!(started.elapsed() < LIMIT, "it has not printed {part:?} within {LIMIT:?}:\n{text}");
            ended = self.child.try_wait().unwrap().is_some();
            thread::sleep(Duration::from_millis(10));
        }
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

    /// Kills it. False when it had ended by itself.
    fn kill(mut self) -> bool {
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

/// What an HTTP server on this machine answers.
fn get(address: &str, path: &str) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

#[test]
fn metrics_are_scraped() {
    let address = {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        format!("127.0.0.1:{port}")
    };
    let mut example = Run::start("metrics", &[&address]);
    example.until_prints("scrape http");
    let started = Instant::now();
    let parts = [
        "ergon_flows_ended_total{flow_type=\"Order\",state=\"completed\"} ",
        "ergon_step_attempts_total{flow_type=\"Order\",step=\"charge\",outcome=\"retried\"} ",
        "ergon_flow_duration_seconds_bucket{flow_type=\"Order\",le=\"0.5\"} ",
        "ergon_log_duration_seconds_count{operation=\"commit\"} ",
        "ergon_flows{queue=\"default\",flow_type=\"Order\",state=\"completed\"} ",
        "ergon_slots 16",
    ];
    loop {
        let text = get(&address, "/metrics").unwrap_or_default();
        if parts.iter().all(|part| text.contains(part)) {
            break;
        }
        assert!(started.elapsed() < LIMIT, "not all of {parts:#?} is in:\n{text}");
        thread::sleep(Duration::from_millis(50));
    }
    assert!(example.kill(), "it runs until it is stopped");
}

#[test]
fn otel_shows_one_trace() {
    let text = run("otel", &[]);
    let tree = [
        "1 trace\n",
        "\n  POST /orders\n    schedule Order\n      Order\n        reserve\n      Order\n",
        "\n        pack\n          wrap\n",
    ];
    has(&text, &tree);
    assert_eq!(text.matches(" wrap\n").count(), 2, "one for each attempt:\n{text}");
}

#[test]
fn download_comes_back_later_and_cleans_up() {
    let text = run("download", &[]);
    let parts = [
        "the server is busy",
        "3072 bytes",
        "attempt 1 failed",
        "cancelled (no longer wanted): what there was of ",
        "the flow is cancelled: no longer wanted",
        "no half a file is there",
    ];
    has(&text, &parts);
}

#[test]
fn vault_keeps_its_secrets() {
    let text = run("vault", &[]);
    has(
        &text,
        &[
            "bytes: \\x01\\x042025",
            "Ada Lovelace at DE02 1203 0000 0000 2020 51, approved by Bob",
            "look_up",
            "the flow is stalled: what is stored of it cannot be decoded",
            "by codec \"2025\": another key has encrypted it, or it was tampered with",
            "Ada Lovelace at DE02 1203 0000 0000 2020 51, approved by Cleo",
        ],
    );
    let stored = text.lines().next().unwrap();
    assert!(!stored.contains("iban") && !stored.contains("DE02"), "{stored}");
}

#[test]
fn order_runs_and_answers_again() {
    let timeline = [
        "attempt 3, key",
        "charge of order-7: attempt 2 failed after",
        "charge of order-7: attempt 3 done after",
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

/// The state of a flow in a file, if it is there.
async fn state(db: &str, id: &str) -> Option<FlowState> {
    let log = ergon::open(&format!("sqlite:{db}")).await.unwrap();
    let record = log.flow(&FlowId::new(id).unwrap()).await.unwrap();
    record.map(|record| record.info.state)
}

#[tokio::test]
async fn order_goes_on_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    for attempt in 0..20 {
        let db = folder.path().join(format!("orders-{attempt}.db"));
        let db = db.to_str().unwrap();
        // The flow sleeps for a second, after its first steps.
        let mut first = Run::start("order", &[db]);
        first.until_prints("attempt 3");
        let started = Instant::now();
        while state(db, "order-7").await == Some(FlowState::Running) {
            assert!(started.elapsed() < LIMIT, "it does not sleep");
            thread::sleep(Duration::from_millis(10));
        }
        first.kill();
        if state(db, "order-7").await == Some(FlowState::Completed) {
            // The second was over before anybody looked.
            continue;
        }
        let second = run("order", &[db]);
        has(&second, &["ship: with label 8", "Order \"order-7\" (version 1): completed"]);
        assert!(!second.contains("reserve: one"), "a recorded step ran again:\n{second}");
        return;
    }
    panic!("the order was never killed in time");
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
fn repair_charges_once() {
    let text = run("repair", &[]);
    has(
        &text,
        &[
            "charge: 4200 cents",
            "order-7: ",
            "to do: mend the cause",
            "order-7b: payment of 4200, sent to 12 Rue Cler, Paris",
            "of order-7, from call 2 on",
            "order-7b once more: payment of 4200",
            "to take back: 1 flows: order-7b",
            "taken back: 1 flows: order-7b",
            "order-7b again: payment of 4200",
            "to fork: 1 flows: order-7",
        ],
    );
    assert_eq!(text.matches("charge: ").count(), 1, "{text}");
    assert_eq!(text.matches("deliver: ").count(), 4, "{text}");
}

#[test]
fn courier_is_called_back() {
    let text = run("courier", &[]);
    has(
        &text,
        &[
            "cake: delivered a cake, by Bob, confirmed by Ada, notes: ring twice and mind the dog",
            "piano: Bob waits on: the block exceeded its time limit of 200ms",
            "Bob is called back: the flow exceeded its time limit",
            "piano: Bob comes home",
            "piano: the flow failed: the flow exceeded its time limit",
            "Bob had: cake (completed)",
            "Bob had: piano (failed)",
        ],
    );
    assert_eq!(text.matches("called back").count(), 1, "{text}");
}

#[test]
fn deploy_leaves_old_parcels_alone() {
    let text = run("deploy", &[]);
    has(
        &text,
        &[
            "check of the careless build: no; flow \"vase\": the code and the history part at call 2",
            "check of build 2: vase goes on",
            "parcel \"bowl\"",
            "it is stalled: ",
            "to do: do what the reason says, then `retry`",
            "bowl: delivered",
            "lamp: insure",
            "kite: flown",
            "check of build 3: no; flow \"vase\": the flow goes by the code from before the change \"insurance\"",
            "check of build 3: lamp goes on",
            "vase: delivered",
            "parcels under way: 1",
            "lamp: delivered",
        ],
    );
    assert!(!text.contains("vase: insure") && !text.contains("bowl: insure"), "{text}");
    for step in ["pack", "weigh", "deliver"] {
        assert_eq!(text.matches(&format!(": {step}\n")).count(), 3, "{text}");
    }
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what:?} is not in {text}"));
    let order =
        [at("bowl: weigh"), at("it is stalled"), at("build 2, with"), at("bowl: deliver\n"), at("bowl: delivered")];
    assert!(order.is_sorted(), "{text}");
}

#[test]
fn desk_puts_things_right() {
    let text = run("desk", &[]);
    has(
        &text,
        &[
            "invoice scheduled in queue bank: 6",
            "  collect 6\n  collect 1\n",
            "invoice-1: the bank does not answer",
            "to retry: 5 flows",
            "retried:  5 flows",
            "to cancel: 1 flows: invoice-5",
            "cancelled: 1 flows: invoice-5",
            "deleted:   1 flows: invoice-2",
            "flows there: 5",
            "forgotten: 2",
        ],
    );
    assert_eq!(text.matches("  collect ").count(), 10, "{text}");
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
fn auction_counts_each_bid_once() {
    let text = run("auction", &[]);
    has(
        &text,
        &[
            "bob bids: Accepted",
            "bob bids: Duplicate",
            "the auction: ada has the clock for 300 euros, of 2 bids; nobody wants the lamp",
            "sold 2: nobody wants the lamp",
            "the last status: Some(\"clock: 2 bids\")",
            "(version 1, run 3): completed",
            "ada hears: Some(\"ada has the clock for 300 euros, of 2 bids\")",
            "call 4: the lamp: once\ncall 5: the lamp: twice\ncall 6: the lamp: gone\n",
        ],
    );
}

#[test]
fn trip_is_booked_or_undone() {
    let text = run("trip", &[]);
    has(
        &text,
        &[
            "Rome: flight 406, hotel 405, car 403",
            "Oslo: the hotel 405 is released\nOslo: the flight 406 is released\nOslo: the flow failed: there is no car",
            "Bergen: the flow failed: there is no car in Bergen; compensation 2 failed too",
            "Bergen: the hotel 605 is released\nBergen: the flight 606 is released\nBergen, retried: the flow failed",
            "Lima: waits for the visa\nLima: the car 403 is released\nLima: the hotel 405 is released\n\
             Lima: the flight 406 is released\nLima: the flow was cancelled: the visa was refused",
            "cancelled, and cleans up: the visa was refused",
            "Cusco: waits for the visa\nCusco: the flow was cancelled: the agency is bankrupt",
        ],
    );
    let released = text.lines().filter(|line| line.starts_with("Cusco") && line.ends_with("is released")).count();
    assert_eq!(released, 0, "{text}");
}

#[test]
fn workers_take_over() {
    let text = run("workers", &[]);
    has(&text, &["bob was killed (SIGKILL)", "all 60 flows completed"]);
    assert!(number_before(&text, "of") > 0, "nothing was taken over:\n{text}");
}

/// Sends a process a signal.
fn signal(run: &Run, signal: &str) {
    let status = Command::new("kill").arg(format!("-{signal}")).arg(run.child.id().to_string()).status();
    assert!(status.unwrap().success());
}

#[test]
fn session_downloads_again() {
    let text = run("session", &[]);
    let at = |what: &str| text.find(what).unwrap_or_else(|| panic!("{what:?} is not in {text}"));
    let order = [
        at("ann downloads film"),
        at("ann was killed"),
        at("the session on worker \"ann\" is lost, \"bob\" has taken over"),
        at("bob downloads film"),
        at("bob converts film"),
        at("1000 lines, by bob"),
    ];
    assert!(order.is_sorted(), "{text}");
    assert!(!text.contains("ann converts"), "{text}");
    let after =
        |what: &str| text.lines().find_map(|line| line.split_once(what)).unwrap_or_else(|| panic!("{what:?}: {text}"));
    let (preferred, killed, insisted) = (
        after("rounds, preferably on one worker: ").1,
        after(" was killed after the first round").0,
        after("rounds, on no other worker: ").1,
    );
    assert!(["ann", "bob"].contains(&preferred), "it went elsewhere, to a worker that was free: {text}");
    assert_eq!(insisted, killed, "it went elsewhere: {text}");
}

/// Three workers share what is sent; one is killed, one is asked to stop, and nothing is lost.
fn fleet_on(url: &str) {
    let worker = |name| Run::start("fleet", &["work", "--log", url, "--name", name, "--slots", "4", "--lease", "0.5"]);
    let mut workers = ["ann", "bob", "cleo"].map(worker);
    for worker in &mut workers {
        worker.until_prints("works");
    }
    let send = Run::start("fleet", &["send", "300", "--log", url]);
    let done = || {
        let status = run("fleet", &["status", "--log", url]);
        let line = status.lines().find(|line| line.contains("completed"));
        line.map_or(0, |line| number_before(line, "Parcel"))
    };
    let until_done = |count| {
        let started = Instant::now();
        while done() < count {
            assert!(started.elapsed() < LIMIT, "{} of {count} are done on {url}", done());
            thread::sleep(Duration::from_millis(10));
        }
    };
    let [ann, bob, cleo] = workers;
    until_done(30);
    assert!(bob.kill());
    until_done(60);
    signal(&cleo, "TERM");
    has(&cleo.end().text, &["cleo has given back"]);
    let Ended { success, text } = send.end();
    assert!(success, "{text}");
    has(&text, &["300 flows are scheduled, 0 were there", "all 300 are done", "ann ran", "bob ran", "cleo ran"]);
    assert_eq!(
        text.lines().filter(|line| line.contains("ran")).map(|line| number_before(line, "steps")).sum::<u64>(),
        900
    );
    has(&run("fleet", &["send", "300", "--log", url]), &["0 flows are scheduled, 300 were there"]);
    signal(&ann, "INT");
    has(&ann.end().text, &["ann has given back"]);
}

#[test]
fn fleet_works_on_a_file() {
    let folder = tempfile::tempdir().unwrap();
    fleet_on(&format!("sqlite:{}", folder.path().join("fleet.db").display()));
}

#[test]
fn fleet_works_on_servers() {
    fleet_on(&Redis::start(Persistence::None).url());
    fleet_on(&Postgres::start().url());
}

#[test]
fn fleet_refuses_bad_urls() {
    has(&refuse("fleet", &["status", "--log", "fleet.db"]), &["error:", "write sqlite:FILE"]);
    has(&refuse("fleet", &["status", "--log", "mysql://localhost"]), &["error:", "mysql:", "redis://"]);
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
fn backup_goes_on_where_it_was_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (from, to) = (path("from"), path("to"));
    let bytes: Vec<u8> = (0..6_000_000_u32).map(|number| (number % 251).try_into().unwrap()).collect();
    fs::write(&from, &bytes).unwrap();
    let mut killed = Run::start("backup", &[&from, &to]);
    killed.until_prints("begin at 0\n");
    // Its first heartbeat was durable long before.
    killed.until_prints("copied 1310720\n");
    assert!(killed.kill(), "it had to be killed in the middle");
    let text = run("backup", &[&from, &to]);
    let begun: u64 = text.split_once("begin at ").unwrap().1.lines().next().unwrap().parse().unwrap();
    assert!(begun >= 262_144, "{text}");
    has(&text, &["attempt 1 has come to", "done, 6000000 bytes"]);
    assert!(fs::read(&to).unwrap() == bytes);
    assert!(!run("backup", &[&from, &to]).contains("begin"), "it is done");
}

#[test]
fn ingest_is_the_same_however_often_it_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    let files = make_tree(&tree);
    let db = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (calm, mut rough, fresh) = (db("calm.db"), db("rough.db"), db("fresh.db"));
    let tree_arg = tree.to_str().unwrap();

    let text = run("ingest", &["index", tree_arg, "--db", &calm]);
    assert_eq!(number_before(&text, "new"), files, "{text}");
    has(&text, &["skipped    1: binary", "skipped    1: larger than 2 MiB"]);

    // Killed when some files are done and some are not.
    let mut kills = 0;
    for attempt in 0..20 {
        let run_again = Run::start("ingest", &["index", tree_arg, "--db", &rough]);
        let started = Instant::now();
        let before = done(&rough);
        while done(&rough) == before && started.elapsed() < LIMIT {
            thread::sleep(Duration::from_millis(1));
        }
        if run_again.kill() && done(&rough) < files {
            kills += 1;
            if kills == 2 {
                break;
            }
        } else if kills > 0 {
            break;
        } else {
            // It was over before anybody looked.
            rough = db(&format!("rough-{attempt}.db"));
        }
    }
    assert!(kills > 0, "the run was over each time before it could be killed");
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

/// Worker processes are killed, and not a cent is lost.
fn bank_adds_up(args: &[&str]) {
    let text = run("bank", args);
    has(
        &text,
        &[
            "processes killed         15",
            "cents in all          10000   of 10000",
            "every transfer was booked once, and noted once",
        ],
    );
    let [booked, refused] = ["completed", "refused"].map(|word| {
        let line = text.lines().find(|line| line.starts_with("transfers") && line.contains(word)).unwrap_or_default();
        line.split_whitespace().nth(2).and_then(|number| number.parse::<u32>().ok()).unwrap_or_default()
    });
    assert_eq!(booked + refused, 300, "{text}");
    assert!(booked > 100, "{text}");
}

#[test]
fn bank_adds_up_on_a_file() {
    bank_adds_up(&[]);
}

#[test]
fn bank_adds_up_on_a_server() {
    bank_adds_up(&[&Postgres::start().url()]);
}
