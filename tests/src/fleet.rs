//! Worker processes on one log, what is done to them, and what must hold afterwards.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use ergon::{
    Entry, FlowHandle, FlowId, FlowState, Scheduler,
    storage::{CallKind, ExecutionLog, Filter, Phase},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use crate::{
    job::{self, Job},
    soon, until, within,
};

/// A handle on a [`Job`].
pub type Handle = FlowHandle<u32, ergon::Error>;

/// How long the flows of a fleet may take in which everything goes wrong.
pub const FLEET_PATIENCE: Duration = Duration::from_secs(120);

/// Processes that run [`Job`]s on one log, and keep one diary.
pub struct Fleet {
    program: PathBuf,
    url: String,
    log: Arc<dyn ExecutionLog>,
    folder: TempDir,
    lease: Duration,
    slack: Duration,
}

impl Fleet {
    /// A fleet without workers, on the log at `url`; `program` is `env!("CARGO_BIN_EXE_job-worker")`.
    ///
    /// # Panics
    ///
    /// When the log cannot be opened.
    pub async fn new(program: &str, url: &str, lease: Duration) -> Self {
        let log = job::open(url).await.unwrap_or_else(|error| panic!("{error:?}"));
        let folder = TempDir::new().expect("a directory");
        Self { program: program.into(), url: url.into(), log, folder, lease, slack: Duration::ZERO }
    }

    /// The instants that processes note may be wrong by so much, because each estimates the clock of a server.
    #[must_use]
    pub fn slack(mut self, slack: Duration) -> Self {
        self.slack = slack;
        self
    }

    /// The log, as the test sees it.
    #[must_use]
    pub fn log(&self) -> &dyn ExecutionLog {
        &*self.log
    }

    /// Starts a worker.
    #[must_use]
    pub fn worker(&self) -> Process {
        self.worker_at(&self.url, &[])
    }

    /// Starts a worker that reaches the log at another URL, with these variables in its environment.
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[must_use]
    pub fn worker_at(&self, url: &str, variables: &[(&str, String)]) -> Process {
        let mut command = Command::new(&self.program);
        command.arg(url).arg(self.diary()).arg(self.lease.as_millis().to_string());
        Process::start(command.envs(variables.iter().map(|(name, value)| (name, value))))
    }

    /// Starts so many workers, and waits until they are ready to work.
    pub async fn workers(&self, count: usize) -> Vec<Process> {
        let workers: Vec<_> = (0..count).map(|_| self.worker()).collect();
        self.ready(&workers).await;
        workers
    }

    /// Waits until these workers are ready to work.
    pub async fn ready(&self, workers: &[Process]) {
        until("workers to be ready", || async {
            // Half a line, as long as one is being written, is no note yet.
            let diary = fs::read_to_string(self.diary()).unwrap_or_default();
            let ready = diary.lines().filter(|line| line.contains(" ready "));
            let ready: HashSet<_> = ready.filter_map(|line| line.split(' ').nth(3)).collect();
            workers.iter().all(|worker| ready.contains(worker.id().to_string().as_str()))
        })
        .await;
    }

    /// Schedules the jobs of these numbers.
    ///
    /// # Panics
    ///
    /// When the log refuses.
    pub async fn schedule(&self, numbers: impl IntoIterator<Item = u32>) -> Vec<Handle> {
        let jobs = numbers.into_iter().map(|number| Entry::new(Job { number }).id(format!("job-{number}")));
        Scheduler::new(Arc::clone(&self.log)).schedule_all::<Job, _>(jobs).await.expect("jobs are scheduled")
    }

    /// How many jobs are not completed.
    ///
    /// # Panics
    ///
    /// When the log refuses to tell; when it does not answer, it is asked again.
    pub async fn unfinished(&self) -> u64 {
        let counts = loop {
            match self.log.counts(&Filter::all()).await {
                Err(error) if error.is_retryable() => tokio::time::sleep(Duration::from_millis(10)).await,
                counts => break counts.expect("the log answers"),
            }
        };
        counts.iter().filter(|count| count.state != FlowState::Completed).map(|count| count.flows).sum()
    }

    /// Waits until no more than so many jobs are left.
    ///
    /// # Panics
    ///
    /// When they stay.
    pub async fn down_to(&self, left: u64) {
        let what = format!("no more than {left} flows to be left");
        within(FLEET_PATIENCE, &what, async {
            while self.unfinished().await > left {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }

    fn diary(&self) -> PathBuf {
        self.folder.path().join("diary")
    }

    /// What the processes noted.
    ///
    /// # Panics
    ///
    /// When there is no diary.
    #[must_use]
    pub fn notes(&self) -> Vec<Note> {
        let diary = fs::read_to_string(self.diary()).expect("there is a diary");
        diary.lines().map(Note::parse).collect()
    }

    /// Asserts of all these jobs, which have completed: each has its result, and each call one outcome; no two
    /// claims had one epoch; what a worker was told to be written is in the history; no body began after the
    /// outcome of its step was written, except in the process `paused`, which could not know. Returns those.
    ///
    /// # Panics
    ///
    /// When something does not hold.
    pub async fn check(&self, flows: &[Handle], paused: Option<u32>) -> Vec<String> {
        let mut notes: HashMap<String, Vec<Note>> = HashMap::new();
        for note in self.notes() {
            notes.entry(note.flow.clone()).or_default().push(note);
        }
        let mut too_late = Vec::new();
        for flow in flows {
            let notes = notes.remove(flow.id().as_str()).unwrap_or_default();
            too_late.extend(self.check_flow(flow, &notes, paused).await);
        }
        too_late
    }

    async fn check_flow(&self, flow: &Handle, notes: &[Note], paused: Option<u32>) -> Vec<String> {
        let id = flow.id();
        let result = soon("a result", flow.result()).await;
        assert_eq!(result.unwrap_or_else(|error| panic!("{id}: {error:?}")), job::RESULT);
        let history = self.log.history(id, 0, 1_000).await.expect("a history");
        let mut outcomes: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for record in history.iter().filter(|record| record.phase.is_outcome()) {
            outcomes.entry(record.path.clone()).or_default().push(record);
        }
        // Six steps and a timer; the timer that lost has no outcome.
        assert_eq!(outcomes.len(), 7, "{id}: {history:#?}");
        // When the outcome of each step was made.
        let mut made = HashMap::new();
        for (path, outcomes) in outcomes {
            assert_eq!(outcomes.len(), 1, "{id} has several outcomes at {path}: {outcomes:#?}");
            assert_eq!(outcomes[0].phase, Phase::Completed);
            if outcomes[0].kind == CallKind::Step {
                made.insert(job::step_of(&outcomes[0].payload).into_owned(), outcomes[0].at.as_micros());
            }
        }
        let mut too_late = Vec::new();
        let mut epochs = HashSet::new();
        let mut written = HashSet::new();
        for note in notes {
            match &note.event {
                Event::Begin(step) => {
                    let late = written.contains(step) || note.at > made[step.as_str()] + self.slack_micros();
                    if late {
                        assert_eq!(Some(note.process), paused, "{id}: a body began too late: {note:?} in {notes:#?}");
                        too_late.push(format!("{note:?}"));
                    }
                }
                Event::Claim(epoch) => {
                    assert!(epochs.insert(*epoch), "{id}: epoch {epoch} was given twice: {notes:#?}");
                }
                Event::Written(seq, step) => {
                    let record = history.iter().find(|record| record.seq == *seq && record.phase.is_outcome());
                    let kept = record.is_some_and(|record| job::step_of(&record.payload) == **step);
                    assert!(kept, "{id}: {note:?} was lost: {history:#?}");
                    written.insert(step.clone());
                }
                Event::End | Event::Ready => {}
            }
        }
        too_late
    }

    fn slack_micros(&self) -> i64 {
        i64::try_from(self.slack.as_micros()).expect("a short time")
    }
}

/// A line of the diary. The lines stand in the order in which they were written, whoever wrote them.
#[derive(Debug)]
pub struct Note {
    /// The flow.
    pub flow: String,
    /// What happened.
    pub event: Event,
    /// In which process.
    pub process: u32,
    /// When, in microseconds, by the clock of the log as that process knew it.
    pub at: i64,
}

/// What a process notes.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The body of this step began.
    Begin(String),
    /// A body ended.
    End,
    /// The process is ready to work.
    Ready,
    /// The flow was claimed, under this epoch.
    Claim(u64),
    /// The log has answered that the outcome is written: its number in the history, and the step.
    Written(u32, String),
}

impl Note {
    pub(crate) fn parse(line: &str) -> Self {
        let [flow, event, what, process, at] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line:?}") };
        let event = match event {
            "begin" => Event::Begin(what.into()),
            "end" => Event::End,
            "ready" => Event::Ready,
            "claim" => Event::Claim(what.parse().expect("an epoch")),
            "written" => {
                let (seq, step) = what.split_once(':').expect("a number and a step");
                Event::Written(seq.parse().expect("a number"), step.into())
            }
            _ => panic!("{line:?}"),
        };
        Self { flow: flow.into(), event, process: process.parse().expect("an id"), at: at.parse().expect("a time") }
    }
}

/// A worker process, killed when it is dropped.
pub struct Process(Child);

impl Process {
    /// Starts one, which lives until its standard input ends.
    ///
    /// # Panics
    ///
    /// When it does not start.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).spawn().expect("the process starts"))
    }

    /// True once it has ended by itself.
    ///
    /// # Panics
    ///
    /// When it cannot be told.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("the process is ours").is_some()
    }

    /// Lets it come to its end, without waiting for that.
    pub fn close(&mut self) {
        drop(self.0.stdin.take());
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends it a signal: `STOP`, `CONT`.
    ///
    /// # Panics
    ///
    /// When that cannot be done; so do the others.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").arg(format!("-{signal}")).arg(self.0.id().to_string()).status();
        assert!(status.expect("kill runs").success(), "kill -{signal}");
    }

    /// SIGKILL: no destructor runs, nothing is flushed.
    ///
    /// # Panics
    ///
    /// When it is not there.
    pub fn kill(&mut self) {
        self.0.kill().expect("the process is ours");
        self.0.wait().expect("the process is ours");
    }

    /// Lets it shut down.
    ///
    /// # Panics
    ///
    /// When it fails.
    pub fn stop(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().expect("the process is ours").success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A generator that can be repeated: `ERGON_SEED` says with which seed, else a new one is drawn and printed.
#[must_use]
pub fn random() -> StdRng {
    let seed = std::env::var("ERGON_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("seed: ERGON_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Workers are killed at random, again and again, and others take their place.
///
/// # Panics
///
/// When something does not hold; so do the others.
pub async fn killed_at_random(fleet: &Fleet, processes: usize) {
    let mut rng = random();
    let flows = fleet.schedule(0..200).await;
    let mut workers: Vec<_> = (0..processes).map(|_| fleet.worker()).collect();
    let mut kills = 0;
    let all_done = async {
        while fleet.unfinished().await > 0 {
            // First at random, then long enough for the rest, on a machine however busy.
            let most = if kills < 40 { 50 } else { 2_000 + 100 * (kills - 40) };
            tokio::time::sleep(Duration::from_millis(rng.random_range(5..most))).await;
            let victim = rng.random_range(0..processes);
            workers[victim].kill();
            workers[victim] = fleet.worker();
            kills += 1;
        }
    };
    within(FLEET_PATIENCE, "the flows of killed workers", all_done).await;
    println!("{kills} kills");
    for worker in workers {
        worker.stop();
    }
    fleet.check(&flows, None).await;
}

/// Two processes to whom nothing happens run each body once.
///
/// # Panics
///
/// When something does not hold.
pub async fn share_a_queue(fleet: &Fleet) {
    let workers = fleet.workers(2).await;
    let flows = fleet.schedule(0..200).await;
    fleet.down_to(0).await;
    for worker in workers {
        worker.stop();
    }
    fleet.check(&flows, None).await;
    let mut begun: HashMap<_, u32> = HashMap::new();
    let mut by_process: HashMap<_, u32> = HashMap::new();
    for Note { flow, event, process, .. } in fleet.notes() {
        if let Event::Begin(step) = event {
            *begun.entry((flow, step)).or_default() += 1;
            *by_process.entry(process).or_default() += 1;
        }
    }
    for ((flow, step), times) in begun {
        assert_eq!(times, if step == "flaky" { 2 } else { 1 }, "{flow} {step}");
    }
    assert_eq!(by_process.len(), 2, "both worked: {by_process:?}");
}

/// A worker is stopped in the middle of things, past its leases, and goes on when another has done everything.
///
/// # Panics
///
/// When something does not hold.
pub async fn a_zombie_changes_nothing(fleet: &Fleet) {
    let log = fleet.log();
    let zombie = fleet.worker();
    let mut flows = Vec::new();
    for round in 0.. {
        flows.extend(fleet.schedule(round * 200..(round + 1) * 200).await);
        // It is in the middle of things …
        fleet.down_to(190).await;
        stop_between_writes(&zombie, log).await;
        if fleet.unfinished().await > 0 {
            break;
        }
        // … unless it was done before the signal came.
        zombie.signal("CONT");
    }
    // … and another one finishes all, what the first one holds included.
    let other = fleet.worker();
    fleet.down_to(0).await;
    let mut before = Vec::new();
    for flow in &flows {
        before.push((log.flow(flow.id()).await.unwrap(), log.history(flow.id(), 0, 1_000).await.unwrap()));
    }
    zombie.signal("CONT");
    // It finds its leases gone, and goes on with what is new.
    drop(other);
    let next = fleet.schedule([u32::MAX]).await;
    assert_eq!(soon("the zombie's next flow", next[0].result()).await.expect("it completes"), job::RESULT);
    let id = zombie.id();
    zombie.stop();
    for (flow, (info, history)) in flows.iter().zip(before) {
        assert_eq!(log.flow(flow.id()).await.unwrap(), info);
        assert_eq!(log.history(flow.id(), 0, 1_000).await.unwrap(), history);
    }
    // No check can help a thread that is paused between the check and the body: it begins what it was about to
    // begin, at most the two bodies of a join on each of its two threads, and nothing more.
    let too_late = fleet.check(&flows, Some(id)).await;
    assert!(too_late.len() <= 4, "{too_late:#?}");
}

/// Stops a process while it does not write: it would hold the lock of a file, and nobody could write.
async fn stop_between_writes(process: &Process, log: &dyn ExecutionLog) {
    let nobody = FlowId::new("nobody").expect("an id");
    loop {
        process.signal("STOP");
        if log.delete(&nobody).await.is_ok() {
            return;
        }
        process.signal("CONT");
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Workers whose machines disagree about the time by minutes.
///
/// # Panics
///
/// When something does not hold.
#[cfg(target_os = "linux")]
pub async fn clocks_differ(fleet: &Fleet) {
    let clock = fleet.log().clock();
    let begun = clock.now();
    let workers = [-300, 0, 300].map(|seconds| {
        let variables = crate::skew::skewed(fleet.folder.path(), seconds);
        fleet.worker_at(&fleet.url, &variables)
    });
    fleet.ready(&workers).await;
    let flows = fleet.schedule(0..200).await;
    fleet.down_to(0).await;
    for worker in workers {
        worker.stop();
    }
    fleet.check(&flows, None).await;
    let by_process: HashSet<_> = fleet.notes().iter().map(|note| note.process).collect();
    assert_eq!(by_process.len(), 3, "all worked: {by_process:?}");
    let (earliest, latest) = (begun.as_micros() - fleet.slack_micros(), clock.now().as_micros() + fleet.slack_micros());
    for flow in &flows {
        for record in fleet.log().history(flow.id(), 0, 1_000).await.expect("a history") {
            let dated = (earliest..=latest).contains(&record.at.as_micros());
            assert!(dated, "{} has {record:?}, between {begun} and {}", flow.id(), clock.now());
            let fired_early = record.kind == CallKind::Timer
                && record.phase == Phase::Completed
                && record.due_at.is_some_and(|due_at| record.at < due_at);
            assert!(!fired_early, "{} has {record:?}", flow.id());
        }
    }
}

/// The path of a file, for the URL of an SQLite log.
#[must_use]
pub fn sqlite_url(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}
