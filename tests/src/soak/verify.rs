//! What must hold when a soak is over.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Write,
};

use ergon::{
    FlowId,
    storage::{ExecutionLog, FlowRecord, Phase, PrunePolicy, Record, Result},
};

use super::{
    client,
    errand::{Errand, Kind, UNDO},
};
use crate::{
    fleet::{Event, Note},
    job,
};

/// More than any history of an errand has.
const ALL: usize = 10_000;
/// How many bodies a process that was paused may begin too late: no check can help a thread that is paused between
/// the check and the body.
const LATE_MAX: usize = 4;

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// How many flows there are, the children too.
    pub flows: u64,
    /// How many steps had their outcome written.
    pub steps: u64,
    /// What does not hold.
    pub problems: Vec<String>,
    /// The flows of which something does not hold, with their histories.
    pub evidence: String,
}

/// Looks at all these errands, at what processes have noted, and at how often each process was paused; then lets the log
/// forget all flows, after which it has none.
pub(super) async fn verify(
    log: &dyn ExecutionLog,
    numbers: &[u32],
    notes: &[Note],
    pauses: &HashMap<u32, usize>,
) -> Result<Findings> {
    let mut findings = Findings::default();
    let mut by_flow: HashMap<&str, Vec<&Note>> = HashMap::new();
    for note in notes {
        by_flow.entry(&note.flow).or_default().push(note);
        findings.steps += u64::from(matches!(note.event, Event::Written(..)));
    }
    let mut wanted: HashMap<String, Errand> = HashMap::new();
    for number in numbers {
        let errand = Errand::new(*number);
        if errand.kind() == Kind::Children {
            let children = (1..=2).map(|place| (format!("{}/{place}", client::id_of(*number)), errand.child()));
            wanted.extend(children);
        }
        wanted.insert(client::id_of(*number), errand);
    }
    let mut late: HashMap<u32, usize> = HashMap::new();
    for (id, errand) in &wanted {
        let flow_id = FlowId::new(id.clone()).expect("an id");
        let Some(flow) = log.flow(&flow_id).await? else {
            findings.problems.push(format!("{id} is not there"));
            continue;
        };
        let history = log.history(&flow_id, 0, ALL).await?;
        findings.flows += 1;
        let notes = by_flow.get(id.as_str()).map_or(&[][..], Vec::as_slice);
        let mut problems = Vec::new();
        of_flow(errand, &flow, &history, &mut problems);
        of_notes(&flow, &history, notes, &mut late, &mut problems);
        if !problems.is_empty() {
            let _ = writeln!(findings.evidence, "{flow:#?}\n{history:#?}");
        }
        findings.problems.extend(problems.into_iter().map(|problem| format!("{id}: {problem}")));
    }
    for (process, times) in late {
        let most = pauses.get(&process).copied().unwrap_or(0) * LATE_MAX;
        if times > most {
            findings.problems.push(format!("process {process} began {times} bodies whose outcome was written"));
        }
    }
    nothing_is_left(log, wanted.len(), &mut findings.problems).await?;
    Ok(findings)
}

/// What holds of a flow and its history.
pub(super) fn of_flow(errand: &Errand, flow: &FlowRecord, history: &[Record], problems: &mut Vec<String>) {
    let result = serde_json::from_slice::<u64>(&flow.result).ok();
    let is = (flow.info.state, result);
    if is != errand.outcome() {
        problems.push(format!("it came to {is:?} instead of {:?}", errand.outcome()));
    }
    let outcomes: Vec<_> = history.iter().filter(|record| record.phase.is_outcome()).collect();
    let paths: HashSet<_> = outcomes.iter().map(|record| &record.path).collect();
    if paths.len() != outcomes.len() {
        problems.push(format!("a call has two outcomes: {outcomes:?}"));
    }
    if matches!(errand.kind(), Kind::Cancelled | Kind::Failing) {
        let done = outcomes.iter().filter(|record| &*record.name == "work" && record.phase == Phase::Completed);
        let done: Vec<_> = done.map(|record| job::step_of(&record.payload).replacen("1.", "", 1)).collect();
        let (undone, done): (Vec<_>, Vec<_>) = done.into_iter().partition(|name| name.starts_with(UNDO));
        let expected: Vec<_> = done.iter().rev().map(|name| format!("{UNDO}{name}")).collect();
        if undone != expected {
            problems.push(format!("it did {done:?}, and undid {undone:?}"));
        }
    }
}

/// What holds of what processes have noted of a flow.
fn of_notes(
    flow: &FlowRecord,
    history: &[Record],
    notes: &[&Note],
    late: &mut HashMap<u32, usize>,
    problems: &mut Vec<String>,
) {
    let kept: BTreeMap<u32, _> = history
        .iter()
        .filter(|record| record.phase.is_outcome())
        .map(|record| (record.seq, job::step_of(&record.payload)))
        .collect();
    let (mut epochs, mut written) = (HashSet::new(), HashSet::new());
    for note in notes {
        match &note.event {
            Event::Claim(epoch) if !epochs.insert(*epoch) => {
                problems.push(format!("epoch {epoch} was given twice"));
            }
            Event::Begin(step) if written.contains(step) => *late.entry(note.process).or_default() += 1,
            Event::Written(seq, step) => {
                written.insert(step.clone());
                // The histories of former runs are gone.
                let is_present = step.split('.').next() == Some(&*flow.info.run.to_string());
                if is_present && kept.get(seq).is_none_or(|name| name != step) {
                    problems.push(format!("the outcome of {step} was written as record {seq}, and is not there"));
                }
            }
            _ => {}
        }
    }
}

/// The log forgets so many flows, and has none then.
async fn nothing_is_left(log: &dyn ExecutionLog, flows: usize, problems: &mut Vec<String>) -> Result<()> {
    let mut forgotten = 0;
    loop {
        let pruned = log.prune(&PrunePolicy::older_than(std::time::Duration::ZERO)).await?;
        forgotten += pruned;
        if pruned == 0 {
            break;
        }
    }
    if forgotten != flows as u64 {
        problems.push(format!("the log had {forgotten} flows, and {flows} were started"));
    }
    let left = log.counts(&ergon::Filter::all()).await?;
    if !left.is_empty() {
        problems.push(format!("the log has flows that it cannot forget: {left:?}"));
    }
    Ok(())
}
