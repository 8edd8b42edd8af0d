//! Flows that are functions: run, replayed, and crashed at every write.

use ergon::{
    Entry, FlowError, FlowRef, FlowState,
    prelude::*,
    storage::{Filter, NewFlow},
    testing::{Setup, TestRuntime, crash_everywhere},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Adds up what the parts come to, each a flow of its own.
#[flow]
async fn total(parts: Vec<u64>, mut label: String) -> ergon::Result<String> {
    let (mut sum, mut flows) = (0, Vec::new());
    let children: Vec<_> = parts.into_iter().map(|part| child(double(part)).start()).collect();
    for child in children {
        flows.push(child.flow());
        sum += child.await?;
    }
    let told = tell(flows.clone()).await?;
    let last = child(look(flows[0].clone())).await?;
    label.push('!');
    Ok(format!("{label} {sum} {told} {last}"))
}

#[flow(name = "double-it", version = 2)]
async fn double(part: u64) -> ergon::Result<u64> {
    sleep(DAY).await;
    multiply(part, 2).await
}

/// Is told of another flow, and says which.
#[flow]
async fn look(at: FlowRef<double>) -> ergon::Result<String> {
    sleep(DAY).await;
    Ok(format!("saw {at}"))
}

#[flow(timeout = "1h")]
async fn late() -> ergon::Result<()> {
    sleep(DAY).await;
    Ok(())
}

/// Two children of a type with a time limit: one has another, one has none.
#[flow]
async fn limits() -> ergon::Result<(bool, bool)> {
    let (short, none) = (child(late()).timeout(Duration::from_secs(60)).start(), child(late()).timeout(None).start());
    let (short, none) = ergon::join!(short, none);
    Ok((short.is_ok(), none.is_ok()))
}

#[step]
async fn multiply(by: u64, part: u64) -> ergon::Result<u64> {
    Ok(by * part)
}

#[step]
async fn tell(flows: Vec<FlowRef<double>>) -> ergon::Result<String> {
    Ok(flows.iter().map(|flow| flow.id().as_str()).collect::<Vec<_>>().join("+"))
}

fn setup() -> Setup {
    Setup::new().register::<total>().register::<double>().register::<look>().register::<late>().register::<limits>()
}

async fn totalled(runtime: &TestRuntime) -> String {
    let flow = runtime.scheduler().schedule(total(vec![1, 2, 3], "parts".into())).id("t").await.unwrap();
    runtime.result(&flow).await.unwrap()
}

#[tokio::test]
async fn a_function_is_replayed_after_every_crash() {
    let report = crash_everywhere(setup, totalled).await;
    assert_eq!(report.result, "parts! 12 t/1+t/2+t/3 saw t/1");
    assert!(report.crashes > 20, "{report:?}");
    assert!(report.body_runs_max.values().all(|runs| *runs <= 2), "{report:?}");
}

#[tokio::test]
async fn options_of_a_function_hold() {
    let runtime = setup().start().await;
    let doubled = runtime.scheduler().schedule(double(4)).await.unwrap();
    let status = doubled.status().await.unwrap();
    assert_eq!((&*status.flow_type, status.version), ("double-it", 2));
    assert_eq!(runtime.result(&doubled).await.unwrap(), 8);
    let late = runtime.run(late()).await;
    assert!(matches!(&late, Err(FlowError::Fault(error)) if error.to_string().contains("time limit")), "{late:?}");
}

/// A limit that a flow was started with goes before that of its type, also after a crash.
#[tokio::test]
async fn a_time_limit_can_be_chosen_for_one_flow() {
    let report = crash_everywhere(setup, async |runtime: &TestRuntime| {
        let scheduler = runtime.scheduler();
        let began = runtime.now();
        let unlimited = scheduler.schedule(late()).id("unlimited").timeout(None).await.unwrap();
        let entry = Entry::new(double(1)).id("hurried").timeout(DAY / 2);
        let hurried = scheduler.schedule_all([entry]).await.unwrap().remove(0);
        let hurried = runtime.result(&hurried).await.map_err(|error| error.to_string());
        assert!(runtime.now().since(began) < DAY);
        (hurried, runtime.result(&unlimited).await.is_ok(), runtime.run(limits()).await.unwrap())
    });
    let report = report.await;
    let (hurried, unlimited, children) = &report.result;
    assert!(hurried.as_ref().unwrap_err().contains("time limit"), "{hurried:?}");
    assert_eq!((unlimited, children), (&true, &(false, true)));
}

/// The arguments are recorded by name: an older, shorter list is read if what is missing has a default.
#[tokio::test]
async fn an_argument_can_be_added_and_renamed() {
    #[flow]
    async fn grown(#[serde(rename = "size")] length: u64, #[serde(default)] width: u64) -> ergon::Result<u64> {
        Ok(length * 10 + width)
    }
    let runtime = Setup::new().register::<grown>().start().await;
    let id = FlowId::new("old").unwrap();
    runtime.log().enqueue(vec![NewFlow::new(id.clone(), "grown", 1, r#"{"size":7}"#)]).await.unwrap();
    let old = runtime.scheduler().handle::<grown>(id);
    assert_eq!(runtime.result(&old).await.unwrap(), 70);
}

/// Whoever is told of a flow can reach it, if it is there.
#[tokio::test]
async fn a_reference_reaches_its_flow() {
    let runtime = setup().start().await;
    let doubled = runtime.scheduler().schedule(double(4)).id("d").await.unwrap();
    let flow = FlowRef::<double>::from(doubled.id().clone());
    let flow: FlowRef<double> = serde_json::from_str(&serde_json::to_string(&flow).unwrap()).unwrap();
    assert_eq!(runtime.result(&runtime.scheduler().handle(&flow)).await.unwrap(), 8);
    let gone = runtime.scheduler().handle(FlowRef::<double>::new(FlowId::new("gone").unwrap()));
    assert!(gone.status().await.is_err());
    let listed = runtime.log().list(&Filter::default(), None, 10).await.unwrap();
    assert!(listed.flows.iter().all(|flow| flow.state == FlowState::Completed), "{listed:?}");
}
