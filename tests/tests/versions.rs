//! Versions of a flow type side by side: each flow goes on in the code that began it, wherever that is.

use ergon::{
    FlowState,
    prelude::*,
    storage::{Channel, ExecutionLog, NewMessage},
};
use ergon_tests::{FaultyLog, Place, both, looks, soon, state_of};

both!(old_flows_end_in_old_code, old_flows_wait_for_a_worker_that_has_their_code);

mod first {
    use ergon::prelude::*;

    #[flow_type(name = "Trip", version = 1)]
    pub(super) struct Trip;

    #[flow_type]
    impl Trip {
        #[flow]
        async fn run(&self) -> ergon::Result<String> {
            let train = self.book_train().await?;
            let () = signal("go").await?;
            Ok(train)
        }

        #[step]
        async fn book_train(&self) -> ergon::Result<String> {
            Ok("by train".into())
        }
    }
}

mod second {
    use ergon::prelude::*;

    #[flow_type(name = "Trip", version = 2)]
    pub(super) struct Trip {
        pub(super) class: u8,
    }

    #[flow_type]
    impl Trip {
        #[flow]
        async fn run(&self) -> ergon::Result<String> {
            let flight = self.book_flight().await?;
            let () = signal("go").await?;
            Ok(flight)
        }

        #[step]
        async fn book_flight(&self) -> ergon::Result<String> {
            Ok(format!("by plane, class {}", self.class))
        }
    }
}

/// An old flow that waits, and whose worker is gone.
async fn old(log: &FaultyLog) -> ergon::FlowHandle<String, ergon::Error> {
    let worker = Worker::new(log.clone()).register::<first::Trip>().start().await.unwrap();
    let trip = Scheduler::new(log.clone()).schedule(first::Trip).id("old").await.unwrap();
    state_of(log, trip.id(), FlowState::Suspended).await;
    worker.shutdown().await;
    trip
}

async fn old_flows_end_in_old_code(place: Place) {
    let log = place.log().await;
    let old = old(&log).await;
    let worker = Worker::new(log.clone()).register::<first::Trip>().register::<second::Trip>();
    let worker = worker.start().await.unwrap();
    let new = Scheduler::new(log.clone()).schedule(second::Trip { class: 1 }).await.unwrap();
    for trip in [&old, &new] {
        trip.signal("go", &()).await.unwrap();
    }
    assert_eq!(soon("the old trip", old.result()).await.unwrap(), "by train");
    assert_eq!(soon("the new trip", new.result()).await.unwrap(), "by plane, class 1");
    worker.shutdown().await;
}

async fn old_flows_wait_for_a_worker_that_has_their_code(place: Place) {
    let log = place.log().await;
    let old = old(&log).await;
    // After the deploy, whose workers know the new version alone.
    let deployed = Worker::new(log.clone()).register::<second::Trip>().fallback(Duration::from_millis(5));
    let deployed = deployed.start().await.unwrap();
    log.send(NewMessage::new(old.id().clone(), Channel::signal("go"), "null")).await.unwrap();
    let new = Scheduler::new(log.clone()).schedule(second::Trip { class: 2 }).await.unwrap();
    new.signal("go", &()).await.unwrap();
    assert_eq!(soon("the new trip", new.result()).await.unwrap(), "by plane, class 2");
    looks(&log, 1).await;
    assert_eq!(state_of(&log, old.id(), FlowState::Scheduled).await.deliveries, 0, "nobody has touched it");
    let former = Worker::new(log.clone()).register::<first::Trip>().start().await.unwrap();
    assert_eq!(soon("the old trip", old.result()).await.unwrap(), "by train");
    for worker in [deployed, former] {
        worker.shutdown().await;
    }
}
