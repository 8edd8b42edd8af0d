//! Servers and processes, and what is done to them.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use ergon::storage::{ExecutionLog, Filter};
use ergon_test_servers::Proxy;
use rand::{SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use super::{
    client,
    problems::Problems,
    server::{Backend, Server},
    trouble::{self, Scene, Trouble},
    verify::{Findings, verify},
};
use crate::{
    fleet::{Note, Process},
    job,
};

const WORKERS: usize = 4;
const CLIENTS: usize = 2;
/// Short, so that a process that is stopped loses its leases soon.
pub(super) const LEASE: Duration = Duration::from_secs(1);
/// How long everything may take to come to its end once nothing goes wrong any more.
const PATIENCE: Duration = Duration::from_secs(180);

/// What was done, and what was found.
#[derive(Debug, Default)]
pub struct Report {
    /// What the verifier found.
    pub findings: Findings,
    /// Processes that were killed.
    pub kills: usize,
    /// Processes that were stopped past their leases, and continued.
    pub pauses: usize,
    /// How often all connections were cut, or stood still.
    pub cuts: usize,
    /// How often the server was killed and started again.
    pub restarts: usize,
    /// If there are problems, the folder with what the processes have noted and the flows that have them.
    pub folder: Option<PathBuf>,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { findings: Findings { flows, steps, problems, .. }, kills, pauses, cuts, restarts, folder } = self;
        let problems = problems.len();
        write!(
            f,
            "{flows} flows, {steps} steps, {kills} kills, {pauses} pauses, {cuts} cuts, {restarts} restarts, {problems} \
             problems"
        )?;
        folder.iter().try_for_each(|folder| write!(f, ", see {}", folder.display()))
    }
}

struct Storm {
    program: PathBuf,
    folder: TempDir,
    server: Server,
    workers: Vec<Process>,
    clients: Vec<Process>,
    /// Workers that stand still, and until when.
    paused: Vec<(u32, Instant)>,
    /// How often each process was paused.
    pauses: HashMap<u32, usize>,
    report: Report,
}

/// Lets workers and clients live through a storm of so long; `program` is the binary `soak`.
///
/// # Panics
///
/// When a server or a process does not start, or when it does not come to an end.
pub async fn soak(program: &Path, backend: Backend, time: Duration, seed: u64) -> Report {
    let folder = TempDir::new().expect("a folder");
    let server = Server::start(backend, folder.path());
    let mut storm = Storm {
        program: program.into(),
        folder,
        server,
        workers: Vec::new(),
        clients: Vec::new(),
        paused: Vec::new(),
        pauses: HashMap::new(),
        report: Report::default(),
    };
    storm.workers = (0..WORKERS).map(|_| storm.worker()).collect();
    storm.clients = (0..CLIENTS).map(|number| storm.client(number)).collect();
    let has_server = storm.server.proxy().is_some();
    let scene = Scene { workers: WORKERS, clients: CLIENTS, has_server, lease: LEASE };
    let mut rng = StdRng::seed_from_u64(seed);
    let ends_at = Instant::now() + time;
    while Instant::now() < ends_at {
        let (calm, trouble) = trouble::draw(&mut rng, scene);
        tokio::time::sleep(calm).await;
        storm.goes_on(Instant::now());
        storm.strike(trouble).await;
    }
    storm.calm().await
}

impl Storm {
    fn command(&self, role: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(role).arg(self.server.url()).arg(self.folder.path());
        command
    }

    fn worker(&self) -> Process {
        Process::start(&mut self.command("worker"))
    }

    fn client(&self, number: usize) -> Process {
        Process::start(self.command("client").arg(number.to_string()).arg(CLIENTS.to_string()))
    }

    /// Lets processes go on whose time has come.
    fn goes_on(&mut self, now: Instant) {
        let workers = &self.workers;
        self.paused.retain(|(id, until)| {
            if *until <= now
                && let Some(worker) = workers.iter().find(|worker| worker.id() == *id)
            {
                worker.signal("CONT");
            }
            *until > now
        });
    }

    async fn strike(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::KillWorker(victim) => {
                let next = self.worker();
                let former = std::mem::replace(&mut self.workers[victim], next);
                self.kill("worker", former);
            }
            Trouble::KillClient(victim) => {
                // There is never more than one of them.
                let former = self.clients.remove(victim);
                self.kill("client", former);
                let next = self.client(victim);
                self.clients.insert(victim, next);
            }
            Trouble::Pause(victim, time) => self.pause(victim, time),
            Trouble::Cut => {
                self.report.cuts += 1;
                self.server.proxy().into_iter().for_each(Proxy::cut);
            }
            Trouble::Stall(time) => {
                self.report.cuts += 1;
                if let Some(proxy) = self.server.proxy() {
                    proxy.stall(true);
                    tokio::time::sleep(time).await;
                    proxy.stall(false);
                }
            }
            Trouble::Restart => {
                self.report.restarts += 1;
                self.server.kill_and_restart();
            }
        }
    }

    fn kill(&mut self, role: &str, mut process: Process) {
        self.report.kills += 1;
        if process.has_ended() {
            self.problems().tell(&format!("{role} {} has ended by itself", process.id()));
        }
        process.kill();
    }

    /// Stops a worker for longer than its leases last, unless it stands still already.
    fn pause(&mut self, victim: usize, time: Duration) {
        let worker = &mut self.workers[victim];
        let id = worker.id();
        if worker.has_ended() || self.paused.iter().any(|(paused, _)| *paused == id) {
            return;
        }
        worker.signal("STOP");
        self.paused.push((id, Instant::now() + time));
        *self.pauses.entry(id).or_default() += 1;
        self.report.pauses += 1;
    }

    fn problems(&self) -> Problems {
        Problems::in_folder(self.folder.path())
    }

    /// Nothing goes wrong any more: everything comes to its end, and is looked at.
    async fn calm(mut self) -> Report {
        self.goes_on(Instant::now() + PATIENCE);
        let problems = Problems::in_folder(self.folder.path());
        self.clients.iter_mut().for_each(Process::close);
        let ended = tokio::time::timeout(PATIENCE, async {
            while !self.clients.iter_mut().all(Process::has_ended) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        if ended.await.is_err() {
            problems.tell(&format!("the clients do not come to an end within {PATIENCE:?}"));
        }
        self.workers.drain(..).for_each(Process::stop);
        let log = job::open(&self.server.url()).await.expect("the log opens");
        let mut findings = self.look(&*log).await.expect("the log answers");
        findings.problems.extend(problems.all());
        drop(log);
        findings.problems.extend(self.server.left_behind().into_iter().map(|left| format!("left behind: {left}")));
        if !findings.problems.is_empty() {
            let folder = self.folder.keep();
            fs::write(folder.join("evidence"), &findings.evidence).expect("a file can be written");
            self.report.folder = Some(folder);
        }
        self.report.findings = findings;
        self.report
    }

    async fn look(&self, log: &dyn ExecutionLog) -> ergon::storage::Result<Findings> {
        let folder = self.folder.path();
        let numbers: Vec<u32> = (0..CLIENTS)
            .flat_map(|number| {
                let batches = client::batches_done(folder, number);
                (0..batches).flat_map(move |batch| client::numbers(batch, (number, CLIENTS)))
            })
            .collect();
        let notes = fs::read_to_string(super::diary(folder)).unwrap_or_default();
        let notes: Vec<Note> = notes.lines().map(Note::parse).collect();
        let counts = log.counts(&Filter::all()).await?;
        let mut findings = verify(log, &numbers, &notes, &self.pauses).await?;
        let unfinished = counts.iter().filter(|count| !count.state.is_final());
        findings.problems.extend(unfinished.map(|count| format!("not at an end: {count:?}")));
        Ok(findings)
    }
}
