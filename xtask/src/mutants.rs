//! `cargo xtask mutants`: bugs that are planted one at a time, and whether the simulation finds them.
//!
//! All of them are written into one copy of the sources, in `target/mutants`, each behind a switch that a variable of
//! the environment turns on, so that one build serves them all.

use std::{
    collections::HashSet,
    fmt::Write as _,
    fs,
    io::Read as _,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use crate::{
    shell::{self, Error, Result, cargo, output, root, target},
    sim,
};

/// The variable that names the bug to be switched on.
const SWITCH: &str = "ERGON_MUTANT";
/// How many seeds a bug may take to be found.
const SEEDS: &str = "20000";

/// How long a bug may take to be found, at least.
const SHORTEST_LIMIT: Duration = Duration::from_secs(60);

/// A bug.
struct Mutant {
    name: &'static str,
    file: &'static str,
    /// What stands before the place, so that it is the only one.
    before: &'static str,
    /// The right expression or statement.
    right: &'static str,
    wrong: &'static str,
}

const STATE: &str = "ergon-storage/src/memory/state.rs";
const QUEUE: &str = "ergon-storage/src/memory/queue.rs";
const RUN: &str = "ergon-storage/src/memory/run.rs";
const OUTSIDE: &str = "ergon-storage/src/memory/outside.rs";
const LANES: &str = "ergon-storage/src/memory/lanes.rs";
const RELEASE: &str = "ergon/src/journal/release.rs";
const JOURNAL: &str = "ergon/src/journal/mod.rs";
const CLEANUP: &str = "ergon/src/journal/cleanup.rs";
const BEAT: &str = "ergon/src/journal/beat.rs";
const SESSION: &str = "ergon/src/session.rs";
const SNAPSHOT: &str = "ergon-storage/src/memory/snapshot.rs";
const DRIVE: &str = "ergon/src/drive/mod.rs";

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "the log accepts writes of a stale epoch",
        file: STATE,
        before: "",
        right: "self.info.epoch == lease.epoch && self.info.id == lease.flow",
        wrong: "self.info.id == lease.flow",
    },
    Mutant {
        name: "a claim does not raise the epoch",
        file: QUEUE,
        before: "",
        right: "flow.info.epoch += 1;",
        wrong: "flow.info.epoch = 1;",
    },
    Mutant {
        name: "the repeat of a commit is not recognised",
        file: RUN,
        before: "Some((last, answer)) if ",
        right: "last == number",
        wrong: "last == number && number == 0",
    },
    Mutant {
        name: "a flow is suspended though its message is there",
        file: RUN,
        before: "",
        right: "due_at.is_some_and(|due_at| due_at <= now) || flow.mailbox.has_any(&wake.channels, &heard)",
        wrong: "due_at.is_some_and(|due_at| due_at <= now)",
    },
    Mutant {
        name: "a message does not wake its flow",
        file: RUN,
        before: "let wakes = ",
        right: "flow.info.state == FlowState::Suspended && flow.info.wake.channels.contains(&channel)",
        wrong: "false",
    },
    Mutant {
        name: "a consumed message stays in the mailbox",
        file: STATE,
        before: "for &seq in consumed {\n            ",
        right: "self.mailbox.remove(seq);",
        wrong: "let _ = seq;",
    },
    Mutant {
        name: "a sender's key is forgotten",
        file: OUTSIDE,
        before: "",
        right: "flow.mailbox.remember(key);",
        wrong: "drop(key);",
    },
    Mutant {
        name: "a heartbeat does not renew the lease",
        file: QUEUE,
        before: "",
        right: "flow.info.due_at = Some(until);",
        wrong: "let _ = until;",
    },
    Mutant {
        name: "a parent does not hear of its child",
        file: RUN,
        before: "self.end_silently(number, end, now);\n        ",
        right: "self.tell_parent(number, outcome, told, now);",
        wrong: "let _ = (outcome, told);",
    },
    Mutant {
        name: "children outlive the cancellation of their parent",
        file: OUTSIDE,
        before: "",
        right: "pending.extend(self.attached_children(next, next).map(|(child, _)| child));",
        wrong: "",
    },
    Mutant {
        name: "the clean-up does not wait for whoever runs the flow",
        file: OUTSIDE,
        before: "let due_at = ",
        right: "if flow.is_running() { flow.info.due_at } else { Some(now) }",
        wrong: "Some(now)",
    },
    Mutant {
        name: "the log is not told that there is something to clean up",
        file: CLEANUP,
        before: "",
        right: "self.batch.cleanup = Cleanup::Needed;",
        wrong: "",
    },
    Mutant {
        name: "a cancelled flow goes on with what it was about",
        file: CLEANUP,
        before: "for id in over {\n            ",
        right: "self.end_call(id);",
        wrong: "let _ = id;",
    },
    Mutant {
        name: "calls of a clean-up come to nothing",
        file: "ergon/src/journal/ask.rs",
        before: "let is_over = ",
        right: "when_cancelled == WhenCancelled::Ends && self.is_cleaning_up()",
        wrong: "self.is_cleaning_up()",
    },
    Mutant {
        name: "nobody is told that a flow has changed",
        file: STATE,
        before: "self.queue |= info.due_at.is_some() && info.state != FlowState::Running;\n        ",
        right: "self.flows.push(info.id.clone());",
        wrong: "",
    },
    Mutant {
        name: "workers are not told of a flow that is due",
        file: STATE,
        before: "",
        right: "self.queue |= info.due_at.is_some() && info.state != FlowState::Running;",
        wrong: "",
    },
    Mutant {
        name: "a claim does not say when the next flow is due",
        file: QUEUE,
        before: "None => ",
        right: "self.index.lanes.next_due_at(&lanes)",
        wrong: "None",
    },
    Mutant {
        name: "a flow is claimed before it is due",
        file: LANES,
        before: "flows.range(..=",
        right: "(now, u64::MAX)",
        wrong: "(now.saturating_add(std::time::Duration::from_millis(20)), u64::MAX)",
    },
    Mutant {
        name: "another run begins with the history of the former",
        file: RUN,
        before: "",
        right: "flow.history = Vec::new();",
        wrong: "",
    },
    Mutant {
        name: "a timer is early",
        file: RELEASE,
        before: "match due.copied().filter(|(due, _)| ",
        right: "*due <= now",
        wrong: "due.as_micros() <= now.as_micros() + 30_000",
    },
    Mutant {
        name: "outcomes are released out of order",
        file: RELEASE,
        before: "if let Some(Fresh { id, .. }) = ",
        right: "self.fresh.pop_front()",
        wrong: "self.fresh.pop_back()",
    },
    Mutant {
        name: "a body begins before what it hangs on is durable",
        file: JOURNAL,
        before: "",
        right: "startable.after.max(self.released_in) <= self.durable()",
        wrong: "true",
    },
    Mutant {
        name: "a message that was handed to a dropped wait is lost",
        file: "ergon/src/journal/mail.rs",
        before: "",
        right: "self.mail.entry(message.channel.clone()).or_default().insert(message.seq, message);",
        wrong: "drop(message);",
    },
    Mutant {
        name: "what ran at most once runs again after a crash",
        file: "ergon/src/journal/call.rs",
        before: "",
        right: "self.never_repeats() && self.begun > self.attempts",
        wrong: "false",
    },
    Mutant {
        name: "a failed attempt is followed at once",
        file: JOURNAL,
        before: "",
        right: "self.timers.insert((retry_at, id));",
        wrong: "self.timers.insert((now, id));",
    },
    Mutant {
        name: "a process that was stopped begins bodies under a lease that is over",
        file: DRIVE,
        before: "let lapsed = ",
        right: "now >= self.control.until()",
        wrong: "false",
    },
    Mutant {
        name: "a commit that the log could not take is not repeated",
        file: DRIVE,
        before: "match ask().await {\n            Err(error) if ",
        right: "error.is_retryable()",
        wrong: "false",
    },
    Mutant {
        name: "a flow goes on in memory from where another worker left it",
        file: "ergon/src/worker/parking.rs",
        before: "",
        right: "machine.fits(claimed)",
        wrong: "true",
    },
    Mutant {
        name: "a flow waits for ever for a body that may not begin",
        file: DRIVE,
        before: "let held_up = || ",
        right: "effects != Effects::Allowed && journal.is_held_up()",
        wrong: "false",
    },
    Mutant {
        name: "the last heartbeat of an attempt that fails is not written",
        file: BEAT,
        before: "self.held.remove(&(at, id));\n            if ",
        right: "phase == Phase::Completed",
        wrong: "{ let _ = phase; true }",
    },
    Mutant {
        name: "what a step has reported is forgotten with its process",
        file: BEAT,
        before: "pub(super) fn resumed(progress: Bytes) -> Self {\n        ",
        right: "Self { progress: Some((progress, Timestamp::EPOCH)), ..Self::default() }",
        wrong: "drop(progress); Self::default()",
    },
    Mutant {
        name: "a replay tells again what was told",
        file: JOURNAL,
        before: "if ",
        right: "self.emitted <= self.emitted_before",
        wrong: "false",
    },
    Mutant {
        name: "a stream forgets its first items",
        file: STATE,
        before: "if ",
        right: "keep == Keep::Last",
        wrong: "keep == Keep::Last || items.len() > 2",
    },
    Mutant {
        name: "a label that a flow takes away stays",
        file: "ergon/src/labels.rs",
        before: "change(\"ergon::remove_label()\", |labels| ",
        right: "_ = labels.remove(name.as_ref())",
        wrong: "_ = labels.get(name.as_ref())",
    },
    Mutant {
        name: "a flow that is bound goes to whoever asks",
        file: QUEUE,
        before: "",
        right: "Affinity::kept_until(info, due_at, heard_at, now)",
        wrong: "{ let _ = (due_at, heard_at, now); None }",
    },
    Mutant {
        name: "a flow is not told that its session is lost",
        file: SESSION,
        before: "",
        right: "(place != place_of(worker)).then(|| id.to_owned())",
        wrong: "{ let _ = (place, worker, id); None }",
    },
    Mutant {
        name: "writes under the lease before a reset are accepted",
        file: SNAPSHOT,
        before: "",
        right: "info.epoch += 1;",
        wrong: "",
    },
    Mutant {
        name: "a reset keeps a record too many",
        file: SNAPSHOT,
        before: "",
        right: "flow.history.truncate(reset.keep as usize);",
        wrong: "flow.history.truncate(reset.keep as usize + 1);",
    },
    Mutant {
        name: "a flow that was taken back goes on in memory from where it was",
        file: "ergon/src/machine.rs",
        before: "",
        right: "(seq, emitted) == (info.records, info.emitted)",
        wrong: "{ let _ = emitted; seq == info.records }",
    },
    Mutant {
        name: "a fork waits for the children of its origin",
        file: "ergon/src/admin/cut.rs",
        before: "",
        right: "record.kind == CallKind::Child && !ended.contains(&record.path)",
        wrong: "{ let _ = &ended; record.kind != record.kind }",
    },
    Mutant {
        name: "a retry keeps the calls that it is to make again",
        file: STATE,
        before: "",
        right: "self.history.retain(|record| !again.contains(&record.path));",
        wrong: "",
    },
    Mutant {
        name: "what could not be cancelled with its group counts as cancelled",
        file: "ergon/src/admin/bulk.rs",
        before: "if !",
        right: "action.apply(&log, &flow).await?",
        wrong: "action.apply(&log, &flow).await.unwrap_or(true)",
    },
    Mutant {
        name: "a slot is free while its drive waits for the log",
        file: "ergon/src/worker/engine.rs",
        before: "self.options.slots.saturating_sub(",
        right: "self.taken.load(Ordering::Acquire)",
        wrong: "self.leases.all().len()",
    },
    Mutant {
        name: "what was begun is not tidied up",
        file: "ergon/src/cleanup.rs",
        before: "let cleanup = scope.enter(|| cleanup(reason));\n        if let Err(error) = ",
        right: "scope.run(pin!(cleanup)).await",
        wrong: "{ drop(cleanup); scope.close(); std::future::pending().await }",
    },
];

pub(crate) fn run(args: &[String]) -> Result {
    let wanted: Vec<_> = MUTANTS.iter().filter(|mutant| args.iter().all(|arg| mutant.name.contains(&**arg))).collect();
    let copy = target().join("mutants").join("copy");
    write_copy(&copy)?;
    let folder = target().join("mutants").join("target");
    let mut build = cargo(["build"]);
    shell::run(build.args(sim::BUILT).current_dir(&copy).env("CARGO_TARGET_DIR", &folder))?;
    let program = folder.join("sim").join("ergon-sim");
    let began = Instant::now();
    let sound = simulate(&program, "", Duration::MAX)?;
    if !matches!(sound, Outcome::Passes) {
        return Err(Error::new(format!("the simulation fails without any bug planted: {sound:?}")));
    }
    // With a bug it may be that time stands still.
    let limit = SHORTEST_LIMIT.max(began.elapsed() * 5);
    let mut missed = String::new();
    for Mutant { name, .. } in &wanted {
        let outcome = simulate(&program, name, limit)?;
        if let Outcome::Fails(how) = outcome {
            eprintln!("found    {name}\n         {}", how.chars().take(150).collect::<String>());
        } else {
            eprintln!("MISSED   {name}");
            let _ = write!(missed, "\n  {name}");
        }
    }
    if missed.is_empty() {
        eprintln!("{} planted bugs, all found", wanted.len());
        return Ok(());
    }
    Err(Error::new(format!("{SEEDS} seeds do not find:{missed}")))
}

/// What came of a run of the simulation.
#[derive(Debug)]
enum Outcome {
    Passes,
    /// How it says so.
    Fails(String),
}

/// Runs the simulation with a bug switched on.
fn simulate(program: &Path, mutant: &str, limit: Duration) -> Result<Outcome> {
    let failed = |error: std::io::Error| Error::new(format!("the simulation could not be run: {error}"));
    let mut simulation = std::process::Command::new(program);
    let simulation =
        simulation.args(["--seeds", SEEDS]).env(SWITCH, mutant).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut simulation = simulation.spawn().map_err(failed)?;
    let began = Instant::now();
    let mut said = simulation.stderr.take().ok_or_else(|| Error::new("the simulation has no output"))?;
    let reader = thread::spawn(move || {
        let mut text = String::new();
        said.read_to_string(&mut text).map(|_| text)
    });
    let status = loop {
        if let Some(status) = simulation.try_wait().map_err(failed)? {
            break status;
        }
        if began.elapsed() > limit {
            simulation.kill().map_err(failed)?;
            simulation.wait().map_err(failed)?;
            return Ok(Outcome::Fails(format!("it does not end within {} s", limit.as_secs())));
        }
        thread::sleep(Duration::from_millis(50));
    };
    if status.success() {
        return Ok(Outcome::Passes);
    }
    let said =
        reader.join().map_err(|_| Error::new("the reader of the simulation's output panicked"))?.map_err(failed)?;
    let how = said.lines().find(|line| line.starts_with("seed "));
    let how = how.ok_or_else(|| Error::new(format!("the simulation ended by {status}, and named no seed:\n{said}")))?;
    Ok(Outcome::Fails(how.to_owned()))
}

/// Copies the sources, with all bugs in them, each switched off.
fn write_copy(copy: &Path) -> Result {
    let failed = |error: std::io::Error| Error::new(format!("the copy could not be written: {error}"));
    let files = output(std::process::Command::new("git").args(["ls-files"]).current_dir(root()));
    let files = files.ok_or_else(|| Error::new("`git ls-files` does not tell the sources"))?;
    remove_others(copy, Path::new(""), &files.lines().map(Path::new).collect()).map_err(failed)?;
    for file in files.lines() {
        let Ok(text) = fs::read(root().join(file)) else { continue };
        let text = match String::from_utf8(text) {
            Ok(text) => planted(file, text)?.into_bytes(),
            Err(error) => error.into_bytes(),
        };
        let path = copy.join(file);
        fs::create_dir_all(path.parent().unwrap_or(copy)).map_err(failed)?;
        // What is the same need not be built again.
        if fs::read(&path).ok().is_none_or(|was| was != text) {
            fs::write(&path, text).map_err(failed)?;
        }
    }
    Ok(())
}

/// Removes what a former copy has that is no more.
fn remove_others(copy: &Path, folder: &Path, files: &HashSet<&Path>) -> std::io::Result<()> {
    let Ok(entries) = fs::read_dir(copy.join(folder)) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            remove_others(copy, &path, files)?;
        } else if !files.contains(&*path) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The text of a file with its bugs.
fn planted(file: &str, mut text: String) -> Result<String> {
    if file == "ergon-storage/src/lib.rs" {
        text += MODULE;
    }
    for mutant in MUTANTS.iter().filter(|mutant| mutant.file == file) {
        text = mutant.plant(&text)?;
    }
    Ok(text)
}

/// Where the copy asks which bug is switched on.
const MODULE: &str = "
/// Planted bugs.
#[doc(hidden)]
pub mod mutants {
    /// True when this one is switched on.
    pub fn is(name: &str) -> bool {
        static ON: std::sync::OnceLock<String> = std::sync::OnceLock::new();
        ON.get_or_init(|| std::env::var(\"ERGON_MUTANT\").unwrap_or_default()) == name
    }
}
";

impl Mutant {
    fn plant(&self, text: &str) -> Result<String> {
        let Self { name, file, before, right, wrong } = self;
        let place = format!("{before}{right}");
        let times = text.matches(&place).count();
        if times != 1 {
            return Err(Error::new(format!("{place:?}, where {file} would be wrong, is there {times} times")));
        }
        let asks = if file.starts_with("ergon-storage") { "crate" } else { "ergon_storage" };
        let switch = format!("if {asks}::mutants::is({name:?}) {{ {wrong} }} else {{ {right} }}");
        let switch = if right.ends_with(';') { switch } else { format!("({switch})") };
        Ok(text.replacen(&place, &format!("{before}{switch}"), 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bug_has_its_place() {
        for mutant in MUTANTS {
            let text = fs::read_to_string(root().join(mutant.file)).unwrap();
            mutant.plant(&text).unwrap();
        }
    }
}
