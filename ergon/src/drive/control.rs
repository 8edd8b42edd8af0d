//! The orders that reach a flow while it is driven.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicI64, AtomicU8, Ordering},
    task::{Poll, ready},
};

use ergon_storage::{Clock, Timestamp};
use futures::task::AtomicWaker;

/// What a flow that is being driven is told from outside: orders, and how long its lease lasts.
#[derive(Debug)]
pub(crate) struct Control {
    order: AtomicU8,
    /// Until then, in microseconds, the lease is certain to hold.
    until: AtomicI64,
    pub(super) task: AtomicWaker,
}

impl Control {
    pub(super) const RUN: u8 = 0;
    pub(super) const DRAIN: u8 = 1;
    pub(super) const CANCEL: u8 = 2;
    pub(super) const DROP: u8 = 3;

    /// For a flow whose lease is certain to hold until then.
    pub(crate) fn new(until: Timestamp) -> Self {
        let (order, until) = (AtomicU8::new(Self::RUN), AtomicI64::new(until.as_micros()));
        Self { order, until, task: AtomicWaker::new() }
    }

    /// The lease was renewed.
    pub(crate) fn renewed(&self, until: Timestamp) {
        self.until.store(until.as_micros(), Ordering::Release);
    }

    /// Until then the lease is certain to hold.
    pub(crate) fn until(&self) -> Timestamp {
        Timestamp::from_micros(self.until.load(Ordering::Acquire))
    }

    /// Let running bodies end, begin nothing new, then give the flow back.
    pub(crate) fn drain(&self) {
        self.order.fetch_max(Self::DRAIN, Ordering::AcqRel);
        self.task.wake();
    }

    /// Drop the flow, for it was cancelled, when the bodies have ended that watch for that.
    pub(crate) fn cancel(&self) {
        self.order.fetch_max(Self::CANCEL, Ordering::AcqRel);
        self.task.wake();
    }

    /// Drop the flow at once: the lease is gone.
    pub(crate) fn drop_flow(&self) {
        self.order.fetch_max(Self::DROP, Ordering::AcqRel);
        self.task.wake();
    }

    /// Waits for another order than the one that is followed, and for the end of the lease, which is the order to drop.
    pub(super) async fn ordered(&self, clock: &dyn Clock, followed: u8) -> u8 {
        let mut until = self.until();
        let mut lapse = clock.sleep_until(until);
        poll_fn(|cx| {
            loop {
                self.task.register(cx.waker());
                let order = self.order();
                if order != followed {
                    return Poll::Ready(order);
                }
                ready!(lapse.as_mut().poll(cx));
                let renewed = self.until();
                if renewed <= until {
                    return Poll::Ready(Self::DROP);
                }
                until = renewed;
                lapse = clock.sleep_until(until);
            }
        })
        .await
    }

    pub(super) fn order(&self) -> u8 {
        self.order.load(Ordering::Acquire)
    }
}
