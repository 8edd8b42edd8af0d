//! Parents that failed because of their children, and children that end while their parents have failed.

use std::collections::HashMap;

use super::*;

both!(
    a_child_that_failed_is_done_again,
    children_that_end_while_their_parent_has_failed_are_heard,
    a_child_that_was_retried_first_is_heard_once,
    a_cancelled_child_fails_its_parent_again,
    a_deleted_parent_can_be_scheduled_anew,
    a_child_of_an_earlier_flow_is_another_ones,
    a_retried_parent_hears_of_its_own_child,
    a_child_whose_value_was_wrong_gets_another,
    one_retry_is_enough_for_a_family,
    a_child_whose_value_holds_a_map_goes_on,
    a_call_hears_of_its_own_child,
);

async fn worker(log: &FaultyLog, trace: &Trace, world: &World) -> WorkerHandle {
    let worker = Worker::new(log.clone()).register::<Generation>().register::<Earlier>().register::<Waiting>();
    let worker = worker.register::<Corrected>().register::<Siblings>().register::<Buys>().register::<Ships>();
    worker.with_state(trace.clone()).with_state(world.clone()).start().await.unwrap()
}

/// A parent of some children that are parents of some; the youngest work, or wait for a signal.
#[flow_type]
struct Generation {
    number: u32,
    children: u32,
    waits: bool,
}

#[flow_type]
impl Generation {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        if self.number == 0 {
            if self.waits {
                return signal("go").await.map_err(|error| error.to_string());
            }
            return self.work().await;
        }
        let young = |index| Generation {
            number: self.number - 1,
            children: self.children,
            waits: self.number == 1 && index > 0,
        };
        let handles: Vec<_> = (0..self.children).map(|index| child(young(index)).start()).collect();
        let mut sum = 0;
        for handle in handles {
            sum += handle.await?;
        }
        Ok(sum)
    }

    #[step(retry = none)]
    async fn work(&self) -> Result<u32, String> {
        note("work");
        state::<World>().works().map(|()| 1)
    }
}

/// A family whose founder has this id.
async fn family(log: &FaultyLog, id: &str, number: u32, children: u32) -> FlowHandle<u32, String> {
    Scheduler::new(log.clone()).schedule(Generation { number, children, waits: false }).id(id).await.unwrap()
}

async fn a_child_that_failed_is_done_again(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = family(&log, "family", 3, 1).await;
    assert_eq!(fails(&flow).await, "broken");
    assert_eq!(trace.count("work"), 1);
    // Retrying the founder is enough.
    flow.retry().await.unwrap();
    until("the second failure", || async { trace.count("work") == 2 }).await;
    assert_eq!(fails(&flow).await, "broken");
    world.repair();
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 1);
    assert_eq!(trace.count("work"), 3);
    worker.shutdown().await;
}

async fn children_that_end_while_their_parent_has_failed_are_heard(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = family(&log, "family", 1, 3).await;
    assert_eq!(fails(&flow).await, "broken");
    for name in ["family/2", "family/3"] {
        let id = ergon::FlowId::new(name).unwrap();
        log.send(NewMessage::new(id.clone(), Channel::signal("go"), "5")).await.unwrap();
        state_of(&log, &id, FlowState::Completed).await;
    }
    world.repair();
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 11);
    assert_eq!(log.messages(flow.id(), &[], 0, 10).await.unwrap(), []);
    worker.shutdown().await;
}

async fn a_child_that_was_retried_first_is_heard_once(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = family(&log, "family", 1, 1).await;
    assert_eq!(fails(&flow).await, "broken");
    world.repair();
    let child = ergon::FlowId::new("family/1").unwrap();
    Scheduler::new(log.clone()).retry(&child).await.unwrap();
    state_of(&log, &child, FlowState::Completed).await;
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 1);
    assert_eq!(trace.count("work"), 2);
    worker.shutdown().await;
}

async fn a_cancelled_child_fails_its_parent_again(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    world.repair();
    let worker = worker(&log, &trace, &world).await;
    let flow = family(&log, "family", 1, 2).await;
    let waiting = ergon::FlowId::new("family/2").unwrap();
    until("the child", || async { log.flow(&waiting).await.unwrap().is_some() }).await;
    state_of(&log, &waiting, FlowState::Suspended).await;
    Scheduler::new(log.clone()).cancel(&waiting, "enough").await.unwrap();
    let error = fails(&flow).await;
    assert!(error.contains("enough"), "{error}");
    flow.retry().await.unwrap();
    assert_eq!(fails(&flow).await, error);
    // A child that is gone is started anew.
    Scheduler::new(log.clone()).log().delete(&waiting).await.unwrap();
    flow.retry().await.unwrap();
    until("the child", || async { log.flow(&waiting).await.unwrap().is_some() }).await;
    state_of(&log, &waiting, FlowState::Suspended).await;
    log.send(NewMessage::new(waiting, Channel::signal("go"), "5")).await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 6);
    worker.shutdown().await;
}

async fn a_deleted_parent_can_be_scheduled_anew(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    world.repair();
    let worker = worker(&log, &trace, &world).await;
    for round in 1..=3 {
        let flow = family(&log, "family", 2, 1).await;
        assert!(!flow.existed());
        assert_eq!(soon("the result", flow.result()).await.unwrap(), 1);
        assert_eq!(trace.count("work"), round, "its children are new too");
        assert!(log.delete(flow.id()).await.unwrap());
    }
    worker.shutdown().await;
}

/// Waits for its child, unless it is of the first generation, which leaves it behind.
#[flow_type]
struct Earlier {
    generation: u32,
    child: String,
}

#[flow_type]
impl Earlier {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        let young = child(Waiting { number: self.generation }).id(&*self.child).start();
        if self.generation == 1 {
            self.nothing().await?;
            return Ok(0);
        }
        young.await
    }

    #[step]
    async fn nothing(&self) -> Result<(), String> {
        Ok(())
    }
}

/// Waits for a signal, and does its work; without a number, it never ends.
#[flow_type]
struct Waiting {
    number: u32,
}

#[flow_type]
impl Waiting {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        let _: u32 = signal("go").await.map_err(|error| error.to_string())?;
        state::<World>().works()?;
        if self.number == 0 {
            return signal("never").await.map_err(|error| error.to_string());
        }
        Ok(self.number)
    }
}

/// Sends a flow that waits for a signal on its way, and waits until it has come to this state.
async fn let_go(log: &FaultyLog, name: &str, end: FlowState) {
    let id = ergon::FlowId::new(name).unwrap();
    until("the flow", || async { log.flow(&id).await.unwrap().is_some() }).await;
    state_of(log, &id, FlowState::Suspended).await;
    log.send(NewMessage::new(id.clone(), Channel::signal("go"), "1")).await.unwrap();
    state_of(log, &id, end).await;
}

/// Runs the first generation of a flow to its end and deletes it, and schedules the second under the same id. Each has
/// started a child that waits.
async fn two_generations(log: &FaultyLog, children: [&str; 2]) -> FlowHandle<u32, String> {
    let scheduler = Scheduler::new(log.clone());
    let first = scheduler.schedule(Earlier { generation: 1, child: children[0].into() }).id("p").await.unwrap();
    soon("the first", first.result()).await.unwrap();
    assert!(log.delete(first.id()).await.unwrap());
    scheduler.schedule(Earlier { generation: 2, child: children[1].into() }).id("p").await.unwrap()
}

async fn a_child_of_an_earlier_flow_is_another_ones(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    world.repair();
    let worker = worker(&log, &trace, &world).await;
    // It is not heard.
    let second = two_generations(&log, ["old", "young"]).await;
    state_of(&log, second.id(), FlowState::Suspended).await;
    let_go(&log, "old", FlowState::Completed).await;
    assert_eq!(log.messages(second.id(), &[], 0, 10).await.unwrap(), []);
    let_go(&log, "young", FlowState::Completed).await;
    assert_eq!(soon("the second", second.result()).await.unwrap(), 2);
    assert!(log.delete(second.id()).await.unwrap());
    // It is not cancelled.
    let second = two_generations(&log, ["older", "younger"]).await;
    state_of(&log, second.id(), FlowState::Suspended).await;
    second.cancel("enough").await.unwrap();
    state_of(&log, &ergon::FlowId::new("younger").unwrap(), FlowState::Cancelled).await;
    let_go(&log, "older", FlowState::Completed).await;
    worker.shutdown().await;
}

async fn a_retried_parent_hears_of_its_own_child(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    world.repair();
    let worker = worker(&log, &trace, &world).await;
    let second = two_generations(&log, ["young", "young"]).await;
    let error = fails(&second).await;
    assert!(error.contains("earlier flow"), "{error}");
    let_go(&log, "young", FlowState::Completed).await;
    second.retry().await.unwrap();
    let young = ergon::FlowId::new("young").unwrap();
    until("the new child", || async { !log.flow(&young).await.unwrap().unwrap().info.state.is_final() }).await;
    let_go(&log, "young", FlowState::Completed).await;
    assert_eq!(soon("the second", second.result()).await.unwrap(), 2);
    worker.shutdown().await;
}

/// Gives its child a value that stands for the code before and after it was put right.
#[flow_type]
struct Corrected;

#[flow_type]
impl Corrected {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        let number = if state::<World>().works().is_ok() { 6 } else { 0 };
        child(Waiting { number }).id("child").await
    }
}

async fn a_child_whose_value_was_wrong_gets_another(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = Scheduler::new(log.clone()).schedule(Corrected).await.unwrap();
    let_go(&log, "child", FlowState::Failed).await;
    assert_eq!(fails(&flow).await, "broken");
    world.repair();
    // While the former child lives, there can be no other.
    let child = ergon::FlowId::new("child").unwrap();
    log.retry(&child).await.unwrap();
    state_of(&log, &child, FlowState::Suspended).await;
    flow.retry().await.unwrap();
    let error = fails(&flow).await;
    assert!(error.contains("another value"), "{error}");
    log.cancel(&child, "it has the wrong value").await.unwrap();
    flow.retry().await.unwrap();
    until("the new child", || async { !log.flow(&child).await.unwrap().unwrap().info.state.is_final() }).await;
    let_go(&log, "child", FlowState::Completed).await;
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 6);
    worker.shutdown().await;
}

/// Waits for some children, one after another.
#[flow_type]
struct Siblings {
    children: u32,
}

#[flow_type]
impl Siblings {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        let start = |number| child(Waiting { number }).id(format!("child {number}")).start();
        let handles: Vec<_> = (1..=self.children).map(start).collect();
        let mut sum = 0;
        for handle in handles {
            sum += handle.await?;
        }
        Ok(sum)
    }
}

async fn one_retry_is_enough_for_a_family(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = Scheduler::new(log.clone()).schedule(Siblings { children: 3 }).await.unwrap();
    let_go(&log, "child 1", FlowState::Failed).await;
    assert_eq!(fails(&flow).await, "broken");
    // The flow has not heard of these when it is retried.
    let_go(&log, "child 2", FlowState::Failed).await;
    let_go(&log, "child 3", FlowState::Failed).await;
    world.repair();
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 6);
    worker.shutdown().await;
}

/// A child whose value, a map, is made anew by each call, in another order.
#[flow_type]
struct Buys;

#[flow_type]
impl Buys {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        let cart = |seller: u32| (0..20).map(|item| (format!("item {item}"), seller + item)).collect();
        child(Ships { carts: (0..3).map(|seller| (seller, cart(seller))).collect() }).await
    }
}

/// Sellers and what is bought of them.
#[flow_type]
struct Ships {
    carts: HashMap<u32, HashMap<String, u32>>,
}

#[flow_type]
impl Ships {
    #[flow]
    async fn run(&self) -> Result<u32, String> {
        let cents = self.carts.values().flat_map(HashMap::values).sum();
        self.pay(cents).await?;
        self.ship().await.map(|()| cents)
    }

    #[step(retry = none)]
    async fn pay(&self, cents: u32) -> Result<(), String> {
        note(format!("pays {cents}"));
        Ok(())
    }

    #[step(retry = none)]
    async fn ship(&self) -> Result<(), String> {
        note("ships");
        state::<World>().works()
    }
}

async fn a_child_whose_value_holds_a_map_goes_on(place: Place) {
    let log = place.log().await;
    let (trace, world) = (Trace::new(), World::default());
    let worker = worker(&log, &trace, &world).await;
    let flow = Scheduler::new(log.clone()).schedule(Buys).await.unwrap();
    assert_eq!(fails(&flow).await, "broken");
    world.repair();
    flow.retry().await.unwrap();
    assert_eq!(soon("the result", flow.result()).await.unwrap(), 630);
    assert_eq!(trace.take(), ["pays 630", "ships", "ships"]);
    worker.shutdown().await;
}

/// A part of a whole, which comes to a gate.
#[flow_type]
struct Part;

#[flow_type]
impl Part {
    #[flow]
    async fn run(&self) -> Result<String, String> {
        self.make().await
    }

    #[step(retry = none)]
    async fn make(&self) -> Result<String, String> {
        state::<World>().works()?;
        let id = ergon::flow_id().to_string();
        if id == "new" {
            state::<Gate>().pass().await;
        }
        Ok(format!("made by {id}"))
    }
}

/// The same flow in two builds: the child that it starts has another id.
macro_rules! wholes {
    ($($name:ident $id:literal)*) => {
        $(mod $name {
            use super::*;

            #[flow_type(name = "whole")]
            pub(super) struct Whole;

            #[flow_type]
            impl Whole {
                #[flow]
                async fn run(&self) -> Result<String, String> {
                    child(Part).id($id).await
                }
            }
        })*
    };
}

wholes! { before "old" after "new" }

async fn a_call_hears_of_its_own_child(place: Place) {
    let log = place.log().await;
    let (world, gate) = (World::default(), Gate::closed());
    let worker = || Worker::new(log.clone()).register::<Part>().with_state(world.clone()).with_state(gate.clone());
    let first = worker().register::<before::Whole>().start().await.unwrap();
    let whole = Scheduler::new(log.clone()).schedule(before::Whole).await.unwrap();
    assert_eq!(fails(&whole).await, "broken");
    first.shutdown().await;
    world.repair();
    whole.retry().await.unwrap();
    let second = worker().register::<after::Whole>().start().await.unwrap();
    let [old, new] = ["old", "new"].map(|id| ergon::FlowId::new(id).unwrap());
    until("the new child", || async { log.flow(&new).await.unwrap().is_some() }).await;
    // It ends while the new one is at the gate.
    log.retry(&old).await.unwrap();
    state_of(&log, &old, FlowState::Completed).await;
    state_of(&log, whole.id(), FlowState::Suspended).await;
    gate.open();
    assert_eq!(soon("the result", whole.result()).await.unwrap(), "made by new");
    second.shutdown().await;
}
