//! Steps that end in another order.

use std::{
    collections::{BTreeMap, HashSet},
    fmt,
};

use ergon_storage::{ExecutionLog, Filter, FlowId, Record};

use super::{Setup, TestRuntime};
use crate::{History, timeline::excerpt};

/// Runs a scenario several times, each time with the bodies of concurrent steps ending in another order, and replays
/// the history of every flow it made: whether the flows' code makes the same calls when it is replayed, and comes to the
/// same result whichever step ends first.
///
/// In the first run the bodies begin as the code has them; in the others each is held back for some turns, drawn from
/// the number of the run: the same number gives the same turns. Where a flow's result depends by design on who is
/// first, let the scenario return what does not.
///
/// The result must also not depend on what differs from run to run, such as the ids of flows that were given none.
///
/// # Examples
///
/// ```
/// use ergon::{prelude::*, testing::{Setup, check_determinism}};
///
/// #[flow]
/// async fn quotes(shops: Vec<String>) -> ergon::Result<Vec<u32>> {
///     ergon::try_map_concurrent(shops, 10, |shop| async move { quote(&shop).await }).await
/// }
///
/// #[step]
/// async fn quote(shop: &str) -> ergon::Result<u32> {
///     Ok(u32::try_from(shop.len()).unwrap_or(u32::MAX))
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
/// let setup = || Setup::new().register::<quotes>();
/// let report = check_determinism(setup, 8, async |runtime| {
///     runtime.run(quotes(vec!["a".into(), "bb".into(), "ccc".into()])).await.unwrap()
/// })
/// .await;
/// assert_eq!(report.result, [1, 2, 3]);
/// assert!(report.distinct_orders > 1);
/// # });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Panics
///
/// When a run comes to another result, with the first call in which the histories of a flow of fixed id differ; when the code does not
/// replay a history; says in which run. And as [`Setup::start`].
pub async fn check_determinism<T: PartialEq + fmt::Debug>(
    setup: impl Fn() -> Setup,
    orders: u32,
    scenario: impl AsyncFn(&TestRuntime) -> T,
) -> OrderReport<T> {
    let mut seen = HashSet::new();
    let (result, first) = run(&setup, None, &scenario, &mut seen).await;
    for order in 1..orders {
        let (now, histories) = run(&setup, Some(order), &scenario, &mut seen).await;
        if now != result {
            let difference = first.iter().find_map(|(flow, then)| {
                let (call, difference) = first_difference(then, histories.get(flow)?)?;
                Some(format!("; flow {flow:?} differs first in call {call}: {difference}"))
            });
            panic!(
                "the result depends on the order in which steps end: it was {result:?} in order 0 and is {now:?} in \
                 order {order}{}",
                difference.unwrap_or_default()
            );
        }
    }
    OrderReport { result, orders: orders.max(1), distinct_orders: seen.len() }
}

/// What [`check_determinism`] has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct OrderReport<T> {
    /// What the scenario came to, each time.
    pub result: T,
    /// How many runs there were.
    pub orders: u32,
    /// In how many different orders outcomes were recorded in them, where flows with ids of their own are counted as they
    /// come.
    pub distinct_orders: usize,
}

type Histories = BTreeMap<FlowId, History>;

/// One run; adds the order in which its outcomes were recorded.
async fn run<T>(
    setup: &impl Fn() -> Setup,
    order: Option<u32>,
    scenario: &impl AsyncFn(&TestRuntime) -> T,
    seen: &mut HashSet<Vec<String>>,
) -> (T, Histories) {
    let mut setup = setup();
    setup.order = order.map(u64::from);
    let runtime = setup.clone().start().await;
    let result = scenario(&runtime).await;
    let histories = read(&**runtime.log()).await;
    let mut outcomes = Vec::new();
    for history in histories.values() {
        if let Some(Err(mismatch)) = setup.checks.iter().find_map(|check| check.run(&setup, history)) {
            panic!("in order {} a history is not replayed by the code that made it: {mismatch}", order.unwrap_or(0));
        }
        // Without the id, which may be another one each time.
        let kind = &history.info.flow_type;
        outcomes.extend(ends(history).map(|record| format!("{kind} {}", record.path)));
    }
    seen.insert(outcomes);
    (result, histories)
}

/// The histories of all flows.
async fn read(log: &dyn ExecutionLog) -> Histories {
    let failed = |error| -> ! { panic!("the histories cannot be read: {error}") };
    let (mut histories, mut cursor) = (Histories::new(), None);
    loop {
        let page = log.list(&Filter::all(), cursor, 1_000).await.unwrap_or_else(|error| failed(error));
        for info in page.flows {
            let history = History::read(log, &info.id).await.unwrap_or_else(|error| failed(error));
            histories.insert(info.id, history);
        }
        match page.next {
            Some(next) => cursor = Some(next),
            None => return histories,
        }
    }
}

fn ends(history: &History) -> impl Iterator<Item = &Record> {
    history.records.iter().filter(|record| record.phase.is_outcome())
}

/// The first call, by its place, that is another one or came to something else.
fn first_difference(then: &History, now: &History) -> Option<(String, String)> {
    let by_path = |history| -> BTreeMap<_, _> { ends(history).map(|record| (record.path.clone(), record)).collect() };
    let (then, now) = (by_path(then), by_path(now));
    let paths: std::collections::BTreeSet<_> = then.keys().chain(now.keys()).collect();
    paths.into_iter().find_map(|path| {
        let told = |record: Option<&&Record>| match record {
            None => "not made".to_owned(),
            Some(record) => format!("{} {:?} that ended with {}", record.kind, record.name, excerpt(&record.payload)),
        };
        let key = |record: &&Record| (record.kind, record.name.clone(), record.args_hash, record.payload.clone());
        let (a, b) = (then.get(path), now.get(path));
        (a.map(key) != b.map(key)).then(|| (path.to_string(), format!("it was {}, now it is {}", told(a), told(b))))
    })
}
