//! The verifier finds what is planted, and nothing where nothing is.

use std::{
    collections::HashMap,
    fs,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
};

use ergon::{
    FlowHandle, FlowId, InMemoryExecutionLog, Scheduler, WorkerHandle,
    storage::{ExecutionLog, FlowRecord, Phase, Record},
};
use tempfile::TempDir;

use super::{
    client::{self, Client},
    diary,
    errand::{Errand, KINDS, Kind},
    verify::{of_flow, verify},
    worker,
};
use crate::{fleet::Note, job::Diary, soon};

/// A process that none of the tests has.
const NOBODY: u32 = 0;

/// A client's first errands, done.
struct Done {
    log: Arc<dyn ExecutionLog>,
    worker: WorkerHandle,
    numbers: Vec<u32>,
    /// What the worker has noted, and what is planted.
    diary: String,
    pauses: HashMap<u32, usize>,
    _folder: TempDir,
}

impl Done {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let log: Arc<dyn ExecutionLog> = Arc::new(InMemoryExecutionLog::new());
        let notes = Arc::new(Diary::open(&diary(folder.path())));
        let worker = worker(Arc::clone(&log), notes).start().await.unwrap();
        let client = Client::new(Arc::clone(&log), folder.path(), (0, 1));
        let stops = AtomicBool::new(false);
        let stop = async { stops.store(true, Ordering::Release) };
        soon("the errands", futures::future::join(client.run(folder.path(), &stops), stop)).await;
        assert_eq!(client::batches_done(folder.path(), 0), 1);
        let diary = fs::read_to_string(diary(folder.path())).unwrap();
        let numbers = client::numbers(0, (0, 1));
        Self { log, worker, numbers, diary, pauses: HashMap::new(), _folder: folder }
    }

    async fn schedule(&self, errand: Errand, id: &str) -> FlowHandle<u64, ergon::Error> {
        Scheduler::new(Arc::clone(&self.log)).schedule(errand).id(id).await.unwrap()
    }

    fn plant(mut self, note: &str) -> Self {
        self.diary.push_str(note);
        self.diary.push('\n');
        self
    }

    async fn problems(self) -> Vec<String> {
        let notes: Vec<_> = self.diary.lines().map(Note::parse).collect();
        let findings = verify(&*self.log, &self.numbers, &notes, &self.pauses).await.unwrap();
        self.worker.shutdown().await;
        findings.problems
    }

    async fn flow(&self, kind: Kind) -> (Errand, FlowRecord, Vec<Record>) {
        let errand = Errand::new((0..KINDS).find(|number| Errand::new(*number).kind() == kind).unwrap());
        let id = FlowId::new(client::id_of(errand.number)).unwrap();
        let flow = self.log.flow(&id).await.unwrap().unwrap();
        (errand, flow, self.log.history(&id, 0, 1_000).await.unwrap())
    }
}

/// There is one problem, and it says this.
#[track_caller]
fn is_found(problems: &[String], what: &str) {
    assert!(problems.len() == 1 && problems[0].contains(what), "{what:?} is not what was found: {problems:#?}");
}

#[tokio::test]
async fn nothing_is_found_where_all_is_well() {
    let done = Done::new().await;
    assert_eq!(done.problems().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_epoch_that_was_given_twice_is_found() {
    let done = Done::new().await;
    let claim = done.diary.lines().find(|line| line.starts_with("errand-3 claim ")).unwrap().to_owned();
    is_found(&done.plant(&claim).problems().await, "was given twice");
}

#[tokio::test]
async fn a_body_that_began_after_its_outcome_is_found_unless_its_process_stood_still() {
    let late = format!("errand-0 begin 1.first {NOBODY} 0");
    let done = Done::new().await.plant(&late);
    is_found(&done.problems().await, "began 1 bodies whose outcome was written");
    let mut done = Done::new().await.plant(&late);
    done.pauses.insert(NOBODY, 1);
    assert_eq!(done.problems().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_outcome_that_was_acknowledged_and_lost_is_found() {
    let done = Done::new().await.plant(&format!("errand-0 written 77:1.first {NOBODY} 0"));
    is_found(&done.problems().await, "is not there");
}

#[tokio::test]
async fn a_flow_that_is_lost_is_found() {
    let mut done = Done::new().await;
    done.numbers.push(800);
    let problems = done.problems().await;
    assert!(problems.iter().any(|problem| problem == "errand-800 is not there"), "{problems:?}");
}

#[tokio::test]
async fn a_flow_that_came_to_something_else_is_found() {
    let mut done = Done::new().await;
    let flow = done.schedule(Errand::new(8), "errand-800").await;
    soon("the flow", flow.result()).await.unwrap();
    done.numbers.push(800);
    is_found(&done.problems().await, "it came to (Completed, Some(12)) instead of (Completed, Some(804))");
}

#[tokio::test]
async fn a_flow_that_nobody_asked_for_is_found() {
    let done = Done::new().await;
    let flow = done.schedule(Errand::new(0), "another").await;
    soon("the flow", flow.result()).await.unwrap();
    is_found(&done.problems().await, "the log had 31 flows, and 30 were started");
}

#[tokio::test]
async fn a_flow_that_does_not_end_is_found() {
    let done = Done::new().await;
    let signal = (0..KINDS).map(Errand::new).find(|errand| errand.kind() == Kind::Signal).unwrap();
    done.schedule(signal, "another").await;
    is_found(&done.problems().await, "flows that it cannot forget");
}

#[tokio::test]
async fn a_call_with_two_outcomes_is_found() {
    let (errand, flow, mut history) = Done::new().await.flow(Kind::Steps).await;
    let mut problems = Vec::new();
    of_flow(&errand, &flow, &history, &mut problems);
    assert_eq!(problems, Vec::<String>::new());
    let outcome = history.iter().find(|record| record.phase.is_outcome()).unwrap().clone();
    history.push(outcome);
    of_flow(&errand, &flow, &history, &mut problems);
    is_found(&problems, "a call has two outcomes");
}

#[tokio::test]
async fn what_is_not_undone_is_found() {
    for kind in [Kind::Cancelled, Kind::Failing] {
        let (errand, flow, mut history) = Done::new().await.flow(kind).await;
        let undone = |record: &Record| record.phase == Phase::Completed && record.payload.starts_with(b"\"1.undo-");
        let last = history.iter().rposition(undone).unwrap_or_else(|| panic!("{kind:?} undoes: {history:#?}"));
        history.remove(last);
        let mut problems = Vec::new();
        of_flow(&errand, &flow, &history, &mut problems);
        is_found(&problems, "and undid");
    }
}
