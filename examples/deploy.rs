//! Deploys: the code of a flow changes while flows of it are under way, and is held against their histories before.
//!
//! ```text
//! cargo run --example deploy
//! ```
//!
//! One sees a change that was made without a thought refused by the histories in the log; what happens when it is deployed
//! all the same: a parcel is stalled, with nothing lost, and goes on when a worker with the next build starts; the same
//! change behind `patched`, which old flows pass by and new ones take, a second version beside the first, and the old way
//! removed when nobody goes it any more. Each module is a build of the program; here they are all in one.

use ergon::{Admin, Filter, FlowState, prelude::*, testing::Setup};

#[step]
async fn work(what: &str, parcel: &str) -> ergon::Result<()> {
    println!("  {parcel}: {what}");
    Ok(())
}

mod build_1 {
    use ergon::prelude::*;

    use super::work;

    #[flow]
    pub(crate) async fn parcel(name: String) -> ergon::Result<String> {
        work("pack", &name).await?;
        work("weigh", &name).await?;
        signal::<()>("collected").await?;
        work("deliver", &name).await?;
        Ok("delivered".into())
    }
}

/// As if there were no parcels under way.
mod careless {
    use ergon::prelude::*;

    use super::work;

    #[flow]
    pub(crate) async fn parcel(name: String) -> ergon::Result<String> {
        work("pack", &name).await?;
        work("insure", &name).await?;
        work("weigh", &name).await?;
        signal::<()>("collected").await?;
        work("deliver", &name).await?;
        Ok("delivered".into())
    }
}

mod build_2 {
    use ergon::prelude::*;

    use super::work;

    #[flow]
    pub(crate) async fn parcel(name: String) -> ergon::Result<String> {
        work("pack", &name).await?;
        if ergon::patched("insurance") {
            work("insure", &name).await?;
        }
        work("weigh", &name).await?;
        signal::<()>("collected").await?;
        work("deliver", &name).await?;
        Ok("delivered".into())
    }
}

/// Another way altogether: flows keep the version that they were scheduled with.
mod version_2 {
    use ergon::prelude::*;

    use super::work;

    #[flow(version = 2)]
    pub(crate) async fn parcel(name: String) -> ergon::Result<String> {
        work("fly", &name).await?;
        Ok("flown".into())
    }
}

mod build_3 {
    use ergon::prelude::*;

    use super::work;

    #[flow]
    pub(crate) async fn parcel(name: String) -> ergon::Result<String> {
        work("pack", &name).await?;
        ergon::deprecate_patch("insurance");
        work("insure", &name).await?;
        work("weigh", &name).await?;
        signal::<()>("collected").await?;
        work("deliver", &name).await?;
        Ok("delivered".into())
    }
}

/// What a deploy's pipeline does first: replays what is in the log with the code that is to come. No step runs.
async fn check<F: ergon::Flow>(scheduler: &Scheduler, build: &str, parcels: &[&str]) -> ergon::Result<()> {
    for parcel in parcels {
        let history = scheduler.history(&FlowId::new(*parcel)?).await?;
        match Setup::new().replay::<F>(&history) {
            Ok(()) => println!("check of {build}: {parcel} goes on"),
            Err(mismatch) => println!("check of {build}: no; {mismatch}"),
        }
    }
    Ok(())
}

/// Waits until a parcel waits to be collected.
async fn packed(scheduler: &Scheduler, parcel: &str) -> ergon::Result<()> {
    becomes(scheduler, parcel, FlowState::Suspended).await
}

async fn becomes(scheduler: &Scheduler, parcel: &str, state: FlowState) -> ergon::Result<()> {
    let id = FlowId::new(parcel)?;
    while scheduler.status(&id).await?.is_none_or(|info| info.state != state) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ergon::Result<()> {
    let log = SqliteExecutionLog::open_in_memory().await?;
    let (scheduler, admin) = (Scheduler::new(log.clone()), Admin::new(log.clone()));

    println!("build 1");
    let worker = Worker::new(log.clone()).register::<build_1::parcel>().build("1").start().await?;
    let old = scheduler.schedule(build_1::parcel("vase".into())).id("vase").await?;
    let bowl = scheduler.schedule(build_1::parcel("bowl".into())).id("bowl").await?;
    packed(&scheduler, "vase").await?;
    packed(&scheduler, "bowl").await?;
    worker.shutdown().await;

    check::<careless::parcel>(&scheduler, "the careless build", &["vase"]).await?;
    check::<build_2::parcel>(&scheduler, "build 2", &["vase"]).await?;

    println!("the careless build, all the same");
    let worker = Worker::new(log.clone()).register::<careless::parcel>().build("careless").start().await?;
    bowl.signal("collected", &()).await?;
    becomes(&scheduler, "bowl", FlowState::Stalled).await?;
    println!("{}", admin.attention(&Filter::all(), None, 10).await?);
    worker.shutdown().await;

    println!("build 2, with version 2 beside version 1");
    let worker = Worker::new(log.clone()).register::<build_2::parcel>().register::<version_2::parcel>();
    let worker = worker.build("2").start().await?;
    // Nobody has asked for it: to another build it is offered again.
    println!("bowl: {}", bowl.result().await?);
    let new = scheduler.schedule(build_2::parcel("lamp".into())).id("lamp").await?;
    packed(&scheduler, "lamp").await?;
    let flown = scheduler.schedule(version_2::parcel("kite".into())).id("kite").await?;
    println!("kite: {}", flown.result().await?);

    check::<build_3::parcel>(&scheduler, "build 3", &["vase", "lamp"]).await?;
    old.signal("collected", &()).await?;
    println!("vase: {}", old.result().await?);
    worker.shutdown().await;

    let live = Filter::all().with_flow_type("parcel").with_state(FlowState::Suspended);
    println!("build 3: parcels under way: {}", admin.count(&live).await?);
    let worker = Worker::new(log).register::<build_3::parcel>().build("3").start().await?;
    new.signal("collected", &()).await?;
    println!("lamp: {}", new.result().await?);
    worker.shutdown().await;
    Ok(())
}
