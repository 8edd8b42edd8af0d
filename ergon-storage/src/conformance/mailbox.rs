//! Messages.

use futures::future::try_join_all;

use super::{
    Harness,
    scene::{SECOND, Scene, complete, flow, going, id, message, refused, signal, suspend},
};
use crate::{Channel, Commit, Committed, ErrorKind, FlowState, NewMessage, Sent};

/// A message to an unknown flow is its sender's mistake.
pub async fn send_to_an_unknown_flow_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    log.refuses(ErrorKind::NotFound, log.send(message("nobody", &signal("go"), ""))).await;
}

/// A flow that has ended takes no more messages.
pub async fn send_to_an_ended_flow_is_refused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for state in [FlowState::Completed, FlowState::Failed, FlowState::Cancelled] {
        let name = state.to_string();
        log.bring(&name, state).await;
        let error = log.send(message(&name, &signal("go"), "")).await.unwrap_err();
        assert_eq!((error.kind(), error.flow()), (ErrorKind::Finished, Some(&id(&name))));
        assert_eq!(log.mail(&name).await, []);
    }
}

/// Every flow that has not ended takes messages, and only a suspended one changes by it.
pub async fn send_to_a_live_flow_is_accepted(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    for state in [FlowState::Scheduled, FlowState::Running, FlowState::Stalled] {
        let name = state.to_string();
        log.bring(&name, state).await;
        let before = log.read(&name).await;
        log.tell(&name, &signal("go"), "hello").await;
        assert_eq!((log.read(&name).await, log.texts(&name).await), (before, vec!["hello".to_owned()]));
    }
    log.bring("suspended", FlowState::Suspended).await;
    log.tell("suspended", &signal("go"), "hello").await;
    assert_eq!(log.state("suspended").await, FlowState::Scheduled);
}

/// A message comes back as it was sent, dated by the log.
pub async fn send_keeps_every_field(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    log.advance(SECOND).await;
    let payloads = [&b""[..], b"\x00\xff", b"{\"by\": \"ada\"}", "ü".as_bytes()];
    let channels = [signal("go"), signal(""), Channel::children(), Channel::from_name("näme with \"quotes\"\n")];
    for (channel, payload) in channels.iter().zip(payloads) {
        log.send(NewMessage::new(id("a"), channel.clone(), payload)).await.unwrap();
    }
    let messages = log.mail("a").await;
    assert_eq!(messages.len(), 4);
    for (index, message) in messages.iter().enumerate() {
        assert_eq!(message.seq as usize, index + 1);
        assert_eq!((&message.channel, &message.payload[..]), (&channels[index], payloads[index]));
        assert_eq!((message.at, message.child, message.reference.as_deref()), (log.now(), None, None));
    }
}

/// Messages are read in the order of their arrival: of one channel, of several, of all; from a number on; some.
pub async fn messages_are_read_in_order(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a"), flow("b")]).await;
    let channels = [signal("x"), signal("y"), signal("z")];
    for number in 0..12 {
        log.tell("a", &channels[number % 3], &(number + 1).to_string()).await;
        log.tell("b", &channels[0], "not mine").await;
    }
    let [x, y, z] = channels;
    let (only_y, only_never) = ([y], [signal("never")]);
    let cases: [(&[Channel], u32, usize, &[u32]); 13] = [
        (&[], 0, 99, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        (&[], 0, 3, &[1, 2, 3]),
        (&[], 10, 3, &[11, 12]),
        (&[], 12, 3, &[]),
        (&[], u32::MAX, usize::MAX, &[]),
        (&[], 0, 0, &[]),
        (&only_y, 0, 99, &[2, 5, 8, 11]),
        (&only_y, 2, 2, &[5, 8]),
        (&[z.clone(), x.clone()], 0, 5, &[1, 3, 4, 6, 7]),
        (&[z.clone(), x.clone()], 6, usize::MAX, &[7, 9, 10, 12]),
        (&[x.clone(), x.clone()], 0, 99, &[1, 4, 7, 10]),
        (&only_never, 0, 99, &[]),
        (&[signal("never"), z], 9, 99, &[12]),
    ];
    for (channels, after, limit, expected) in cases {
        let messages = log.messages(&id("a"), channels, after, limit).await.unwrap();
        let numbers: Vec<_> = messages.iter().map(|message| message.seq).collect();
        assert_eq!(numbers, expected, "{channels:?} after {after}, at most {limit}");
    }
}

/// A message leaves with the commit that has taken it in, and no other one does.
pub async fn messages_leave_when_consumed(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    for number in 1..=5 {
        log.tell("a", &signal("go"), &number.to_string()).await;
    }
    let mut commit = Commit::new(lease.clone(), 1);
    commit.consumed = vec![4, 2];
    log.commit(commit).await.unwrap();
    assert_eq!(log.texts("a").await, ["1", "3", "5"]);
    log.release(&lease).await.unwrap();
    let claimed = log.take_flow("a").await;
    assert_eq!(claimed.messages, log.mail("a").await, "what was read but not consumed is there again");
}

/// A number that is not in the mailbox is passed over.
pub async fn messages_that_are_gone_can_be_consumed(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.tell("a", &signal("go"), "1").await;
    log.tell("a", &signal("go"), "2").await;
    for (number, consumed) in (1..).zip([vec![1, 1], vec![1], vec![0, 9, u32::MAX]]) {
        let mut commit = Commit::new(lease.clone(), number);
        commit.consumed = consumed;
        assert_eq!(log.commit(commit).await.unwrap(), Committed::Applied);
        assert_eq!(log.texts("a").await, ["2"]);
    }
}

/// Numbers rise over the life of a flow and are never used again.
pub async fn message_numbers_are_not_reused(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    for number in 1..=5 {
        log.tell("a", &signal("go"), "").await;
        assert_eq!(log.mail("a").await[0].seq, number);
        let mut commit = Commit::new(lease.clone(), number);
        commit.consumed = vec![number];
        log.commit(commit).await.unwrap();
    }
    log.go(&lease, 6, super::scene::stall("build-1")).await;
    log.tell("a", &signal("go"), "").await;
    log.retry(&id("a")).await.unwrap();
    log.tell("a", &signal("go"), "").await;
    assert_eq!(log.mail("a").await.iter().map(|message| message.seq).collect::<Vec<_>>(), [6, 7]);
}

/// Nor after the last messages were taken out with an end that was retried.
pub async fn message_numbers_are_not_reused_after_an_end(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.tell("a", &signal("go"), "").await;
    log.tell("a", &signal("go"), "").await;
    let mut commit = Commit::new(lease, 1);
    (commit.consumed, commit.next) = (vec![1, 2], super::scene::fail());
    log.commit(commit).await.unwrap();
    log.retry(&id("a")).await.unwrap();
    assert_eq!(log.mail("a").await, []);
    log.tell("a", &signal("go"), "").await;
    assert_eq!(log.mail("a").await[0].seq, 3);
}

/// A second message with the same key is dropped, whatever else is in it, and changes nothing.
pub async fn send_drops_a_second_message_with_a_key(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let keyed = |channel, key: &str| message("a", &signal(channel), "first").with_key(key);
    assert_eq!(log.send(keyed("go", "k")).await.unwrap(), Sent::Accepted);
    log.suspend(&lease, 1, None, &[signal("other")]).await;
    let before = log.snapshot().await;
    assert_eq!(log.send(keyed("go", "k")).await.unwrap(), Sent::Duplicate);
    assert_eq!(log.send(keyed("other", "k")).await.unwrap(), Sent::Duplicate, "keys are the flow's");
    assert_eq!(log.snapshot().await, before, "it does not even wake");
    for key in ["K", "k ", "kk", "ḱ"] {
        assert_eq!(log.send(keyed("go", key)).await.unwrap(), Sent::Accepted, "{key:?}");
    }
    assert_eq!(log.mail("a").await.iter().map(|message| message.seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
}

/// Messages without a key are all accepted, however equal.
pub async fn send_takes_equal_messages_without_a_key(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    log.add([flow("a")]).await;
    for _ in 0..3 {
        log.tell("a", &signal("go"), "same").await;
    }
    assert_eq!(log.texts("a").await, ["same"; 3]);
}

/// A key is remembered after its message was consumed and after the flow has ended, for that flow alone.
pub async fn send_remembers_keys_until_the_flow_is_deleted(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    log.add([flow("b")]).await;
    let keyed = |name, key| message(name, &signal("go"), "").with_key(key);
    assert_eq!(log.send(keyed("a", "k")).await.unwrap(), Sent::Accepted);
    assert_eq!(log.send(keyed("b", "k")).await.unwrap(), Sent::Accepted);
    let mut commit = Commit::new(lease.clone(), 1);
    commit.consumed = vec![1];
    log.commit(commit).await.unwrap();
    assert_eq!(log.send(keyed("a", "k")).await.unwrap(), Sent::Duplicate);
    assert_eq!(log.go(&lease, 2, suspend(None, &[signal("go")])).await, Committed::Suspended);
    assert_eq!(log.send(keyed("a", "k")).await.unwrap(), Sent::Duplicate);
    log.cancel(&id("a"), "").await.unwrap();
    assert_eq!(log.send(keyed("a", "k")).await.unwrap(), Sent::Duplicate, "its sender has done nothing wrong");
    refused(ErrorKind::Finished, log.send(keyed("a", "other")).await);
    refused(ErrorKind::Finished, log.send(keyed("a", "other")).await);
    assert!(log.delete(&id("a")).await.unwrap());
    refused(ErrorKind::NotFound, log.send(keyed("a", "k")).await);
    log.add([flow("a")]).await;
    assert_eq!(log.send(keyed("a", "k")).await.unwrap(), Sent::Accepted);
}

/// A key that was refused is not remembered.
pub async fn send_forgets_the_key_of_a_refused_message(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let keyed = || message("a", &signal("go"), "").with_key("k");
    refused(ErrorKind::NotFound, log.send(keyed()).await);
    log.add([flow("a")]).await;
    let mut large = keyed();
    large.payload = vec![0; log.limits().payload_bytes_max + 1].into();
    refused(ErrorKind::TooLarge, log.send(large).await);
    assert_eq!(log.send(keyed()).await.unwrap(), Sent::Accepted);
}

/// The end of a flow empties its mailbox; a standstill or a failure does not.
pub async fn an_end_empties_the_mailbox(harness: &impl Harness) {
    let log = Scene::new(harness).await;
    let nexts = [complete(), super::scene::fail(), super::scene::stall("build-1")];
    for (name, next) in ["a", "b", "c"].into_iter().zip(nexts) {
        let lease = log.start(name).await;
        log.tell(name, &signal("go"), "").await;
        log.commit(going(&lease, 1, next)).await.unwrap();
    }
    log.bring("d", FlowState::Suspended).await;
    log.tell("d", &signal("other"), "").await;
    log.cancel(&id("d"), "").await.unwrap();
    for (name, left) in [("a", 0), ("b", 1), ("c", 1), ("d", 0)] {
        assert_eq!(log.mail(name).await.len(), left, "{name}");
    }
}

/// A hundred thousand messages on one channel hide none on another, neither from a read nor from a suspension.
pub async fn a_full_channel_hides_no_other(harness: &impl Harness) {
    const MESSAGES: usize = 100_000;
    let log = Scene::new(harness).await;
    let lease = log.start("a").await;
    let (full, lone) = (signal("full"), signal("lone"));
    for _ in 0..MESSAGES / 1_000 {
        try_join_all((0..1_000).map(|_| log.send(message("a", &full, "")))).await.unwrap();
    }
    assert_eq!(log.go(&lease, 1, suspend(None, std::slice::from_ref(&lone))).await, Committed::Suspended);
    log.tell("a", &lone, "here").await;
    assert_eq!(log.state("a").await, FlowState::Scheduled);
    let claimed = log.take_flow("a").await;
    assert_eq!((claimed.messages.len(), claimed.more_messages), (100, true));
    let read = log.messages(&id("a"), std::slice::from_ref(&lone), 0, 10).await.unwrap();
    assert_eq!(read.iter().map(|message| message.seq as usize).collect::<Vec<_>>(), [MESSAGES + 1]);
    assert_eq!(log.go(&claimed.lease, 1, suspend(None, std::slice::from_ref(&lone))).await, Committed::Awake);
    let last = log.messages(&id("a"), &[full], u32::try_from(MESSAGES).unwrap() - 1, 10).await.unwrap();
    assert_eq!(last.len(), 1);
}
