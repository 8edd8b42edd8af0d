//! Labels: they say in the log what the flow's code has last said, whatever write a process dies at.

use ergon::{
    Admin, Filter, FlowState, Labels,
    prelude::*,
    testing::{Setup, TestRuntime, crash_everywhere},
};
use futures::TryStreamExt;

const HOUR: Duration = Duration::from_secs(3600);

#[step]
async fn work() -> ergon::Result<()> {
    Ok(())
}

/// Sets labels between steps, before waits and before its end, and gives its child one.
#[flow]
async fn order() -> ergon::Result<()> {
    ergon::set_label("stage", "1");
    work().await?;
    ergon::set_label("stage", "2");
    ergon::set_label("fresh", "yes");
    sleep(HOUR).await;
    ergon::set_label("stage", "3");
    ergon::remove_label("fresh");
    let _: u32 = signal("go").await?;
    child(part()).label("stage", "part").await?;
    ergon::set_label("stage", "4");
    Ok(())
}

#[flow]
async fn part() -> ergon::Result<()> {
    Ok(())
}

#[flow]
async fn too_many() -> ergon::Result<()> {
    for number in 0..=Labels::COUNT_MAX {
        ergon::set_label(format!("n{number}"), "x");
    }
    work().await
}

#[flow]
async fn in_a_step() -> ergon::Result<()> {
    careless().await
}

#[step]
async fn careless() -> ergon::Result<()> {
    ergon::set_label("a", "x");
    Ok(())
}

#[tokio::test]
async fn labels_are_durable_with_the_next_commit() {
    let setup = || Setup::new().register::<order>().register::<part>();
    let report = crash_everywhere(setup, async |runtime: &TestRuntime| {
        let scheduler = runtime.scheduler();
        let handle = scheduler.schedule(order()).id("order").label("customer", "ada").await.unwrap();
        let mut seen = Vec::new();
        let labels = async || handle.status().await.unwrap().labels.to_string();
        runtime.advance(HOUR).await;
        seen.push(labels().await);
        handle.signal("go", &1).await.unwrap();
        runtime.result(&handle).await.unwrap();
        seen.push(labels().await);
        let of = async |value: &str| {
            let flows = scheduler.admin().flows(Filter::all().with_label("stage", value));
            let flows: Vec<_> = flows.try_collect().await.unwrap();
            flows.iter().map(|flow| flow.id.to_string()).collect::<Vec<_>>().join(" ")
        };
        for value in ["1", "2", "3", "4", "part"] {
            seen.push(of(value).await);
        }
        seen
    })
    .await;
    let [waiting, ended, one, two, three, four, part] = &report.result[..] else { panic!("{:?}", report.result) };
    assert_eq!((&**waiting, &**ended), ("customer=ada, stage=3", "customer=ada, stage=4"));
    assert_eq!([&**one, two, three, four], ["", "", "", "order"]);
    assert!(part.starts_with("order/"), "{part}");
}

#[tokio::test]
async fn labels_out_of_bounds_fail_the_flow() {
    let runtime = Setup::new().register::<too_many>().register::<in_a_step>().start().await;
    let scheduler = runtime.scheduler();
    let refused = scheduler.schedule(too_many()).label("not a name", "x").await.unwrap_err();
    assert!(refused.to_string().contains("\"not a name\" is none"), "{refused}");
    let handle = scheduler.schedule(too_many()).await.unwrap();
    let failed = runtime.result(&handle).await.unwrap_err().to_string();
    assert!(failed.contains("a flow has at most 16 labels, these are 17"), "{failed}");
    let handle = scheduler.schedule(in_a_step()).await.unwrap();
    let failed = runtime.result(&handle).await.unwrap_err().to_string();
    assert!(failed.contains("set the label in the flow"), "{failed}");
    let admin: Admin = scheduler.admin();
    assert_eq!(admin.count(&Filter::all().with_state(FlowState::Failed)).await.unwrap(), 2);
    assert_eq!(admin.count(&Filter::all().with_reason("at most 16 labels")).await.unwrap(), 1);
}

/// Whether anybody listens to traces must not decide what becomes of a flow.
#[tokio::test]
async fn a_trace_makes_room_for_the_labels_of_the_flow() {
    #[flow]
    async fn many() -> ergon::Result<()> {
        for number in 1..Labels::COUNT_MAX {
            ergon::set_label(format!("label-{number}"), "x");
        }
        work().await
    }

    let runtime = Setup::new().register::<many>().start().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let flow = runtime.scheduler().schedule(many()).label("traceparent", trace).label("customer", "ada").await.unwrap();
    runtime.result(&flow).await.unwrap();
    let labels = flow.status().await.unwrap().labels;
    assert_eq!((labels.len(), labels.get("traceparent")), (Labels::COUNT_MAX, None));
}
