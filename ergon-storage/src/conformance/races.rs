//! Many at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::future::join_all;
use tokio::sync::Barrier;

use super::{
    Harness,
    scene::{
        Handle, LEASE, SECOND, Scene, child, complete, fail, flow, going, id, message, names, request, signal,
        starting, steps, suspend,
    },
};
use crate::{
    Cancelled, Channel, ClaimRequest, ClaimTarget, Commit, Committed, Enqueued, ErrorKind, FlowState, Lease, NewFlow,
    Result, Retried, Sent,
};

/// Runs that many tasks that begin at the same moment, every other one over a second handle on the store.
async fn race<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    scene: &Scene<'_, impl Harness>,
    tasks: usize,
    task: impl Fn(usize, Handle) -> F,
) -> Vec<T> {
    let handles = [Handle(Arc::clone(&scene.0)), scene.second().await];
    let barrier = Arc::new(Barrier::new(tasks));
    let running = (0..tasks).map(|number| {
        let barrier = Arc::clone(&barrier);
        let task = task(number, handles[number % 2].clone());
        tokio::spawn(async move {
            barrier.wait().await;
            task.await
        })
    });
    join_all(running.collect::<Vec<_>>()).await.into_iter().map(|task| task.expect("no task panics")).collect()
}

/// Of those who claim at once each flow goes to one.
pub async fn claims_are_exclusive(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let names = names(0..300);
    log.add(names.iter().map(|name| flow(name))).await;
    let taken = race(&log, 8, |number, log| async move {
        let mut taken = Vec::new();
        loop {
            let flows = log.take(number + 1).await;
            if flows.is_empty() {
                return taken;
            }
            tokio::task::yield_now().await;
            taken.extend(flows.into_iter().map(|claimed| (claimed.lease.flow.to_string(), claimed.lease.epoch)));
        }
    })
    .await;
    let mut taken: Vec<_> = taken.into_iter().flatten().collect();
    taken.sort();
    assert_eq!(taken, names.into_iter().map(|name| (name, 1)).collect::<Vec<_>>());
}

/// A flow that is claimed over and over never has the same epoch twice.
pub async fn epochs_are_unique(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add(names(0..5).iter().map(|name| flow(name))).await;
    let taken = race(&log, 8, |_, log| async move {
        let mut taken = Vec::new();
        for _ in 0..40 {
            let mut request = request(2);
            request.lease = std::time::Duration::ZERO;
            request.deliveries_max = u32::MAX;
            let flows = log.claim(request).await.unwrap().flows;
            taken.extend(flows.into_iter().map(|claimed| (claimed.lease.flow, claimed.lease.epoch)));
        }
        taken
    })
    .await;
    let taken: Vec<_> = taken.into_iter().flatten().collect();
    assert_eq!(taken.len(), 8 * 40 * 2, "all were due all the time");
    assert_eq!(taken.iter().collect::<BTreeSet<_>>().len(), taken.len());
    let claims: u64 = join_all(names(0..5).iter().map(|name| log.info(name))).await.iter().map(|info| info.epoch).sum();
    assert_eq!(claims, 640);
}

/// One flow can be claimed by its id by one only.
pub async fn claims_of_one_flow_are_exclusive(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..20 {
        let name = format!("flow-{round}");
        log.add([flow(&name)]).await;
        let taken = race(&log, 6, |number, log| {
            let target = match number % 3 {
                0 => request(1).target,
                _ => ClaimTarget::Flow(id(&name)),
            };
            async move { log.claim(ClaimRequest::new("worker", target)).await.unwrap().flows.len() }
        })
        .await;
        assert_eq!(taken.iter().sum::<usize>(), 1);
    }
}

/// An id that many enqueue at once is created by one, and the flow is that one's.
pub async fn an_id_is_created_once(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..20 {
        let name = format!("flow-{round}");
        let answers = race(&log, 8, |number, log| {
            let new = NewFlow::new(id(&name), "Order", 1, number.to_string());
            async move { log.enqueue(vec![new]).await.unwrap()[0] }
        })
        .await;
        let winner = answers.iter().position(|answer| *answer == Enqueued::Created).expect("one creates it");
        assert_eq!(log.read(&name).await.input, winner.to_string());
        let others = answers.iter().filter(|answer| **answer == Enqueued::Existing { same: false });
        assert_eq!(others.count(), 7);
    }
}

/// Batches that overlap in different orders are all answered, and each id is created once.
pub async fn overlapping_batches_do_not_stop_one_another(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let answers = race(&log, 8, |number, log| async move {
        let mut created = 0;
        for round in 0..5 {
            let mut batch: Vec<_> = names(round * 50..(round + 1) * 50).iter().map(|name| flow(name)).collect();
            if number % 2 == 0 {
                batch.reverse();
            }
            let answers = log.enqueue(batch).await.unwrap();
            created += answers.iter().filter(|answer| **answer == Enqueued::Created).count();
        }
        created
    })
    .await;
    assert_eq!(answers.iter().sum::<usize>(), 250);
}

/// Of different commits with one number the first is applied, and all are told so; there is no half of any.
pub async fn commits_with_one_number_apply_once(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..10 {
        let name = format!("flow-{round}");
        let lease = log.start(&name).await;
        let answers = race(&log, 8, |number, log| {
            let count = u32::try_from(number).unwrap() + 1;
            let mut commit = steps(&lease, 1, 0, count);
            commit.children = (0..count).map(|path| child(&format!("{name}/{number}/{path}"), &name, path)).collect();
            async move { log.commit(commit).await.unwrap() }
        })
        .await;
        assert_eq!(answers, [Committed::Applied; 8]);
        let records = log.records(&name).await.len();
        assert!((1..=8).contains(&records));
        let filter = crate::Filter::all().with_parent(id(&name));
        let children = log.list(&filter, None, 100).await.unwrap().flows;
        assert_eq!(children.len(), records, "records and children are of one commit");
        let writer = format!("{name}/{}/", records - 1);
        assert!(children.iter().all(|info| info.id.as_str().starts_with(&writer)));
    }
}

/// Commits with successive numbers that are sent at once apply in their order or are refused.
pub async fn commits_sent_at_once_keep_their_order(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..10 {
        let name = format!("flow-{round}");
        let lease = log.start(&name).await;
        let answers = race(&log, 8, |number, log| {
            let number = u32::try_from(number).unwrap() + 1;
            let commit = steps(&lease, number, (number - 1) * 3, 3);
            async move { log.commit(commit).await }
        })
        .await;
        let applied = answers.iter().take_while(|answer| answer.is_ok()).count();
        assert!(applied >= 1, "the first one never has to wait");
        for refused in &answers[applied..] {
            assert_eq!(refused.as_ref().unwrap_err().kind(), ErrorKind::Invalid);
        }
        let expected: Vec<_> = (1..=u32::try_from(applied * 3).unwrap()).map(super::scene::record).collect();
        assert_eq!(log.records(&name).await, expected);
    }
}

/// Workers that pass a flow on by letting their leases end write one history between them.
pub async fn zombies_write_nothing(harness: &impl Harness) {
    const RECORDS: u32 = 120;
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    let written = race(&log, 6, |_, log| async move {
        let mut written = 0;
        loop {
            // A lease that is over at once: everybody is a zombie soon.
            let mut request = request(1);
            request.lease = std::time::Duration::ZERO;
            request.deliveries_max = u32::MAX;
            let Some(claimed) = log.claim(request).await.unwrap().flows.pop() else { return written };
            tokio::task::yield_now().await;
            let mut records = claimed.info.records;
            for number in 1..=3 {
                let mut commit = steps(&claimed.lease, number, records, 1);
                records += 1;
                if records == RECORDS {
                    commit.next = complete();
                }
                match log.commit(commit).await {
                    Ok(_) => written += 1,
                    Err(error) if error.kind() == ErrorKind::LeaseLost => break,
                    Err(error) => panic!("{error:?}"),
                }
                if records == RECORDS {
                    break;
                }
            }
        }
    })
    .await;
    assert_eq!(written.iter().sum::<u32>(), RECORDS, "each acknowledged record is there, and no other");
    assert_eq!(log.records("a").await.len(), RECORDS as usize);
    assert_eq!(log.state("a").await, FlowState::Completed);
}

/// A message that is sent while its flow goes to sleep keeps it awake or wakes it.
pub async fn a_message_to_a_flow_that_suspends_is_not_lost(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..100 {
        let name = format!("flow-{round}");
        let lease = log.start(&name).await;
        let awake = race(&log, 2, |number, log| {
            let (name, lease) = (name.clone(), lease.clone());
            async move {
                if number == round % 2 {
                    log.send(message(&name, &signal("go"), "")).await.unwrap();
                    false
                } else {
                    log.go(&lease, 1, suspend(None, &[signal("go")])).await == Committed::Awake
                }
            }
        })
        .await;
        let expected = if awake.contains(&true) { FlowState::Running } else { FlowState::Scheduled };
        assert_eq!((log.state(&name).await, log.mail(&name).await.len()), (expected, 1));
    }
}

/// A child that ends while its parent goes to sleep keeps it awake or wakes it.
pub async fn a_child_of_a_flow_that_suspends_is_heard(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..100 {
        let (mother, name) = (format!("mother-{round}"), format!("child-{round}"));
        let lease = log.start(&mother).await;
        log.commit(starting(&lease, 1, [child(&name, &mother, 1)])).await.unwrap();
        let child = log.take_flow(&name).await.lease;
        let answers = race(&log, 2, |number, log| {
            let (lease, child) = (lease.clone(), child.clone());
            async move {
                if number == round % 2 {
                    log.go(&child, 1, complete()).await
                } else {
                    log.go(&lease, 2, suspend(None, &[Channel::children()])).await
                }
            }
        })
        .await;
        let awake = answers.contains(&Committed::Awake);
        let expected = if awake { FlowState::Running } else { FlowState::Scheduled };
        assert_eq!((log.state(&mother).await, log.mail(&mother).await.len()), (expected, 1));
    }
}

/// Children that end at once are all heard of.
pub async fn children_that_end_at_once_are_all_heard(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    let names = names(0..64);
    let children = names.iter().zip(1..).map(|(name, path)| child(name, "mother", path));
    log.commit(starting(&mother, 1, children)).await.unwrap();
    log.suspend(&mother, 2, None, &[Channel::children()]).await;
    let leases: Vec<Lease> = log.take(100).await.into_iter().map(|claimed| claimed.lease).collect();
    race(&log, 8, |number, log| {
        let mine: Vec<_> = leases.iter().skip(number).step_by(8).cloned().collect();
        async move {
            for lease in mine {
                log.go(&lease, 1, complete()).await;
            }
        }
    })
    .await;
    let messages = log.mail("mother").await;
    assert!(messages.iter().zip(1..).all(|(message, seq)| message.seq == seq));
    let heard: BTreeSet<_> = messages.into_iter().filter_map(|message| message.reference).collect();
    assert_eq!(heard.len(), 64);
    assert_eq!(log.state("mother").await, FlowState::Scheduled);
}

/// Messages of many senders are all there, those of one sender in their order.
pub async fn messages_of_many_are_all_accepted(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    race(&log, 8, |number, log| async move {
        for count in 0..50 {
            log.tell("a", &signal("go"), &format!("{number}:{count}")).await;
        }
    })
    .await;
    let messages = log.mail("a").await;
    assert!(messages.iter().zip(1..).all(|(message, seq)| message.seq == seq));
    let mut counts = BTreeMap::new();
    for message in &messages {
        let text = super::scene::text(&message.payload);
        let (sender, count) = text.split_once(':').unwrap();
        let next = counts.entry(sender.to_owned()).or_insert(0);
        assert_eq!(count, next.to_string(), "one sender's messages are in order");
        *next += 1;
    }
    assert_eq!(messages.len(), 400);
}

/// Of messages with one key one is accepted.
pub async fn messages_with_one_key_are_accepted_once(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    for round in 0..20 {
        let key = format!("key-{round}");
        let answers = race(&log, 6, |_, log| {
            let message = message("a", &signal("go"), "").with_key(key.clone());
            async move { log.send(message).await.unwrap() }
        })
        .await;
        assert_eq!(answers.iter().filter(|sent| **sent == Sent::Accepted).count(), 1);
    }
    assert_eq!(log.mail("a").await.len(), 20);
}

/// A message is consumed or there, when it is sent while others are being consumed.
pub async fn messages_are_sent_while_others_are_consumed(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    race(&log, 4, |number, log| async move {
        if number > 0 {
            for count in 0..60 {
                log.tell("a", &signal("go"), &format!("{number}:{count}")).await;
                tokio::task::yield_now().await;
            }
            return;
        }
        let mut seen = BTreeSet::new();
        let mut records = 0;
        while seen.len() < 180 {
            let Some(claimed) = log.take(1).await.pop() else {
                tokio::task::yield_now().await;
                continue;
            };
            for message in &claimed.messages {
                assert!(seen.insert(message.payload.clone()), "{:?} is there for the second time", message.payload);
            }
            let mut commit = steps(&claimed.lease, 1, records, 1);
            records += 1;
            commit.consumed = claimed.messages.iter().map(|message| message.seq).collect();
            commit.next = suspend(None, &[signal("go")]);
            let lease = claimed.lease.clone();
            if log.commit(commit).await.unwrap() == Committed::Awake {
                log.release(&lease).await.unwrap();
            }
        }
    })
    .await;
    assert_eq!(log.mail("a").await, []);
}

/// A message that is sent while its flow takes in an earlier one and goes to sleep keeps it awake or wakes it.
pub async fn a_message_to_a_flow_that_consumes_and_suspends_is_not_lost(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..100 {
        let name = format!("flow-{round}");
        let lease = log.start(&name).await;
        log.tell(&name, &signal("go"), "first").await;
        let awake = race(&log, 2, |number, log| {
            let (name, lease) = (name.clone(), lease.clone());
            async move {
                if number == round % 2 {
                    log.tell(&name, &signal("go"), "second").await;
                    false
                } else {
                    let mut commit = going(&lease, 1, suspend(None, &[signal("go")]));
                    commit.consumed = vec![1];
                    log.commit(commit).await.unwrap() == Committed::Awake
                }
            }
        })
        .await;
        let expected = if awake.contains(&true) { FlowState::Running } else { FlowState::Scheduled };
        assert_eq!((log.state(&name).await, log.texts(&name).await), (expected, vec!["second".to_owned()]));
    }
}

/// A message that two commits take in at once counts once: the flow sleeps until the next one comes, and no longer.
pub async fn a_message_that_two_commits_consume_counts_once(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..50 {
        let name = format!("flow-{round}");
        let lease = log.start(&name).await;
        log.tell(&name, &signal("go"), "").await;
        let answers = race(&log, 2, |number, log| {
            let mut commit = Commit::new(lease.clone(), u32::try_from(number).unwrap() + 1);
            commit.consumed = vec![1];
            async move { log.commit(commit).await }
        })
        .await;
        let applied = answers.iter().filter(|answer| answer.is_ok()).count();
        assert!(answers[0].is_ok(), "the first one never has to wait");
        if let Err(refused) = &answers[1] {
            assert_eq!(refused.kind(), ErrorKind::Invalid);
        }
        assert_eq!(log.mail(&name).await, []);
        log.suspend(&lease, u32::try_from(applied).unwrap() + 1, None, &[signal("go")]).await;
        log.tell(&name, &signal("go"), "").await;
        assert_eq!(log.state(&name).await, FlowState::Scheduled);
    }
}

/// A message that many workers take in, each of which holds the flow's lease for no time, is taken in by one of them.
pub async fn a_message_is_consumed_by_one_worker(harness: &impl Harness) {
    const MESSAGES: usize = 20;
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    for number in 0..MESSAGES {
        log.tell("a", &signal("go"), &number.to_string()).await;
    }
    let consumed = race(&log, 4, |_, log| async move {
        let mut consumed = Vec::new();
        loop {
            // A lease that is over at once: everybody is a zombie soon.
            let mut request = request(1);
            request.lease = std::time::Duration::ZERO;
            request.deliveries_max = u32::MAX;
            let claimed = log.claim(request).await.unwrap().flows.pop();
            tokio::task::yield_now().await;
            // It is due all the time, but another may just be at it.
            let Some(claimed) = claimed else { continue };
            let Some(message) = claimed.messages.first() else { return consumed };
            let mut commit = Commit::new(claimed.lease.clone(), 1);
            commit.consumed = vec![message.seq];
            match log.commit(commit).await {
                Ok(_) => consumed.push(message.seq),
                Err(error) => assert_eq!(error.kind(), ErrorKind::LeaseLost, "{error:?}"),
            }
        }
    })
    .await;
    let mut consumed: Vec<u32> = consumed.into_iter().flatten().collect();
    consumed.sort_unstable();
    assert_eq!(consumed, (1..=u32::try_from(MESSAGES).unwrap()).collect::<Vec<_>>());
    let mut request = request(1);
    request.deliveries_max = u32::MAX;
    let lease = log.claim(request).await.unwrap().flows.pop().expect("it is due").lease;
    log.suspend(&lease, 1, None, &[signal("go")]).await;
    log.tell("a", &signal("go"), "").await;
    assert_eq!(log.state("a").await, FlowState::Scheduled);
}

/// The end of a child that is retried while its parent takes that end in: whoever is first, the parent hears of the
/// next end, and of nothing else.
pub async fn what_a_retry_takes_back_is_not_consumed(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..50 {
        let (mother, name) = (format!("mother-{round}"), format!("child-{round}"));
        let lease = log.start(&mother).await;
        log.commit(starting(&lease, 1, [child(&name, &mother, 1)])).await.unwrap();
        let first = log.take_flow(&name).await.lease;
        log.go(&first, 1, fail()).await;
        assert_eq!(log.mail(&mother).await.len(), 1);
        race(&log, 2, |number, log| {
            let (name, lease) = (name.clone(), lease.clone());
            async move {
                if number == round % 2 {
                    assert_eq!(log.retry(&id(&name)).await.unwrap(), Retried::Scheduled);
                } else {
                    let mut commit = Commit::new(lease, 2);
                    commit.consumed = vec![1];
                    assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
                }
            }
        })
        .await;
        assert_eq!(log.mail(&mother).await, []);
        log.suspend(&lease, 3, None, &[Channel::children()]).await;
        let second = log.take_flow(&name).await.lease;
        log.go(&second, 1, complete()).await;
        assert_eq!((log.state(&mother).await, log.mail(&mother).await.len()), (FlowState::Scheduled, 1));
    }
}

/// A cancellation and a commit that ends the flow: one of them wins, and the other is told.
pub async fn cancel_or_the_end_wins(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..100 {
        let name = format!("flow-{round}");
        let lease = log.start_flow(child(&name, "mother", 1)).await;
        let answers: Vec<Result<bool>> = race(&log, 2, |number, log| {
            let (name, lease) = (name.clone(), lease.clone());
            async move {
                if number == round % 2 {
                    Ok(log.cancel(&id(&name), "").await? == Cancelled::Now)
                } else {
                    let mut commit = steps(&lease, 1, 0, 1);
                    commit.next = complete();
                    log.commit(commit).await.map(|_| true)
                }
            }
        })
        .await;
        let cancelled = answers[round % 2].as_ref().copied().unwrap();
        let info = log.info(&name).await;
        if cancelled {
            assert_eq!(answers[1 - round % 2].as_ref().unwrap_err().kind(), ErrorKind::LeaseLost);
            assert_eq!((info.state, info.records), (FlowState::Cancelled, 0));
        } else {
            assert!(answers[1 - round % 2].is_ok());
            assert_eq!((info.state, info.records), (FlowState::Completed, 1));
        }
    }
}

/// A family that is retried from its founder and from its children at once is scheduled as one, and hears of each
/// child once.
pub async fn a_family_is_retried_at_once(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..20 {
        let mother = log.start(&format!("mother-{round}")).await;
        let names: Vec<_> = (0..4).map(|number| format!("child-{round}-{number}")).collect();
        let children = names.iter().zip(1..).map(|(name, call)| child(name, mother.flow.as_str(), call));
        log.commit(starting(&mother, 1, children)).await.unwrap();
        for name in &names {
            let lease = log.take_flow(name).await.lease;
            let below = format!("below {name}");
            log.commit(starting(&lease, 1, [child(&below, name, 1)])).await.unwrap();
            let below = log.take_flow(&below).await.lease;
            log.go(&below, 1, fail()).await;
            log.go(&lease, 2, fail()).await;
        }
        log.go(&mother, 2, fail()).await;
        race(&log, 6, |number, log| {
            let flow = if number < 4 { id(&names[number]) } else { mother.flow.clone() };
            async move { log.retry(&flow).await.unwrap() }
        })
        .await;
        for name in names.iter().cloned().chain(names.iter().map(|name| format!("below {name}"))) {
            assert_eq!((log.state(&name).await, log.mail(&name).await), (FlowState::Scheduled, Vec::new()), "{name}");
        }
        assert_eq!(log.mail(mother.flow.as_str()).await, []);
        for claimed in log.take(100).await {
            if claimed.lease.flow != mother.flow {
                log.go(&claimed.lease, 1, complete()).await;
            }
        }
        assert_eq!(log.mail(mother.flow.as_str()).await.len(), 4);
    }
}

/// A family that is cancelled while it grows leaves no live child behind.
pub async fn cancel_leaves_no_late_child(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..30 {
        let mother = format!("mother-{round}");
        let lease = log.start(&mother).await;
        race(&log, 2, |number, log| {
            let (mother, lease) = (mother.clone(), lease.clone());
            async move {
                if number == 0 {
                    for count in 1..20 {
                        let commit = starting(&lease, count, [child(&format!("{mother}/{count}"), &mother, count)]);
                        if log.commit(commit).await.is_err() {
                            return;
                        }
                    }
                } else {
                    tokio::task::yield_now().await;
                    log.cancel(&id(&mother), "").await.unwrap();
                }
            }
        })
        .await;
    }
    let counts = log.counts(&crate::Filter::all()).await.unwrap();
    assert!(counts.iter().all(|count| count.state == FlowState::Cancelled), "{counts:?}");
}

/// Of those who cancel a flow at once one does.
pub async fn cancel_happens_once(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mother = log.start("mother").await;
    for round in 0..20 {
        let name = format!("flow-{round}");
        log.commit(starting(&mother, round + 1, [child(&name, "mother", round)])).await.unwrap();
        let answers = race(&log, 6, |_, log| {
            let id = id(&name);
            async move { log.cancel(&id, "").await.unwrap() }
        })
        .await;
        assert_eq!(answers.iter().filter(|answer| **answer == Cancelled::Now).count(), 1);
    }
    assert_eq!(log.mail("mother").await.len(), 20, "each of them is heard of once");
}

/// A lease that ends is renewed by its holder or claimed by another, never both.
pub async fn a_lease_is_renewed_or_claimed(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let mut leases = Vec::new();
    for round in 0..50 {
        leases.push(log.start(&format!("flow-{round}")).await);
    }
    log.advance(LEASE).await;
    let answers = race(&log, 2, |number, log| {
        let leases = leases.clone();
        async move {
            let mut mine = BTreeSet::new();
            for lease in &leases {
                let got = if number == 0 {
                    log.beat(lease).await == crate::LeaseState::Held
                } else {
                    let request = ClaimRequest::new("other", ClaimTarget::Flow(lease.flow.clone()));
                    !log.claim(request).await.unwrap().flows.is_empty()
                };
                if got {
                    mine.insert(lease.flow.clone());
                }
            }
            mine
        }
    })
    .await;
    assert_eq!(answers[0].len() + answers[1].len(), 50);
    assert!(answers[0].is_disjoint(&answers[1]));
}

/// A flow is deleted by one, and nothing that is done to it meanwhile brings it back.
pub async fn a_deleted_flow_stays_deleted(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for round in 0..30 {
        let name = format!("flow-{round}");
        let lease = log.start(&name).await;
        log.go(&lease, 1, complete()).await;
        let deleted = race(&log, 6, |number, log| {
            let (name, lease) = (name.clone(), lease.clone());
            async move {
                match number {
                    0 | 1 => return log.delete(&id(&name)).await.unwrap(),
                    2 => _ = log.commit(going(&lease, 2, complete())).await.unwrap_err(),
                    3 => _ = log.cancel(&id(&name), "").await,
                    4 => _ = log.send(message(&name, &signal("go"), "")).await.unwrap_err(),
                    _ => _ = log.retry(&id(&name)).await,
                }
                false
            }
        })
        .await;
        assert_eq!(deleted.iter().filter(|deleted| **deleted).count(), 1);
        assert_eq!(log.flow(&id(&name)).await.unwrap(), None);
    }
    assert_eq!(log.counts(&crate::Filter::all()).await.unwrap(), []);
}

/// Counters that flows keep for themselves, passed on among many workers, add up.
pub async fn many_workers_bring_every_flow_to_its_end(harness: &impl Harness) {
    const FLOWS: usize = 60;
    const STEPS: u32 = 6;
    let log = Scene::new(harness).await;
    log.add(names(0..FLOWS).iter().map(|name| flow(name))).await;
    let at = log.now().saturating_add(SECOND);
    let done = race(&log, 6, |_, log| async move {
        let mut done = 0;
        while log.counts(&crate::Filter::all()).await.unwrap().iter().any(|count| !count.state.is_final()) {
            tokio::task::yield_now().await;
            for claimed in log.take(3).await {
                let records = claimed.info.records;
                let mut commit = steps(&claimed.lease, 1, records, 1);
                match records + 1 {
                    STEPS => commit.next = complete(),
                    2 | 4 => commit.next = suspend(Some(at), &[signal("go")]),
                    _ => {}
                }
                let lease = commit.lease.clone();
                let (name, next) = (lease.flow.to_string(), commit.next.clone());
                let answer = log.commit(commit).await.unwrap();
                match answer {
                    Committed::Suspended => log.tell(&name, &signal("go"), "").await,
                    Committed::Applied if next != crate::Next::Run => done += 1,
                    Committed::Applied => log.release(&lease).await.unwrap(),
                    Committed::Awake => {
                        let mut drained = Commit::new(lease.clone(), 2);
                        drained.consumed = claimed.messages.iter().map(|message| message.seq).collect();
                        log.commit(drained).await.unwrap();
                        log.release(&lease).await.unwrap();
                    }
                }
            }
        }
        done
    })
    .await;
    assert_eq!(done.iter().sum::<usize>(), FLOWS);
    for (flow, history, _) in log.snapshot().await.flows {
        assert_eq!((flow.info.state, history.len()), (FlowState::Completed, STEPS as usize));
    }
}

/// A mailbox, a history and a list are read whole while they grow.
pub async fn reads_are_never_torn(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    race(&log, 4, |number, log| {
        let lease = lease.clone();
        async move {
            if number == 0 {
                for count in 0..60 {
                    let mut commit = steps(&lease, count + 1, count * 5, 5);
                    commit.children = vec![child(&format!("child-{count}"), "a", count)];
                    log.commit(commit).await.unwrap();
                }
                log.go(&lease, 61, complete()).await;
                return;
            }
            loop {
                tokio::task::yield_now().await;
                let info = log.info("a").await;
                assert_eq!(info.records % 5, 0, "a commit is seen as a whole");
                let records = log.records("a").await;
                assert_eq!(records.len() % 5, 0, "a commit is read as a whole");
                assert!(records.len() >= info.records as usize);
                let page = log.list(&crate::Filter::all().with_parent(id("a")), None, 1_000).await.unwrap();
                assert!(page.flows.len() >= records.len() / 5, "records and children come together");
                if info.state.is_final() {
                    return;
                }
            }
        }
    })
    .await;
    assert_eq!(log.records("a").await.len(), 300);
}
