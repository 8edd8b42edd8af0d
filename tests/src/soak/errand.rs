//! The flows of a soak, and what they must come to.

use std::{sync::Arc, time::Duration};

use ergon::{FlowState, prelude::*, saga};

use crate::job::Diary;

/// How many kinds of errands there are.
pub(super) const KINDS: u32 = 8;
/// What is sent to the errands that wait for messages.
pub(super) const PARCELS: Mailbox<u64> = Mailbox::new("parcels");
/// How many messages they wait for.
pub(super) const PARCELS_EACH: u64 = 3;
/// How often the errands begin that do so again.
pub(super) const RUNS: u32 = 3;

/// Something to be done in one of several ways, which its number decides.
#[flow_type]
#[derive(Debug, Clone)]
pub(super) struct Errand {
    /// Its number.
    pub(super) number: u32,
    /// How often it begins, in all.
    pub(super) runs: u32,
}

/// A way to do an errand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Steps, some at one time, some that fail at first.
    Steps,
    /// Waits between steps.
    Timer,
    /// Waits for a signal.
    Signal,
    /// Waits for messages.
    Parcels,
    /// Lets two others do it.
    Children,
    /// Begins again.
    Rounds,
    /// Is cancelled, and undoes what it has done.
    Cancelled,
    /// Fails, and undoes what it has done.
    Failing,
}

impl Errand {
    /// The errand of this number.
    pub(super) fn new(number: u32) -> Self {
        let errand = Self { number, runs: 1 };
        if errand.kind() == Kind::Rounds { Self { runs: RUNS, ..errand } } else { errand }
    }

    /// How it is done.
    pub(super) fn kind(&self) -> Kind {
        match self.number % KINDS {
            0 => Kind::Steps,
            1 => Kind::Timer,
            2 => Kind::Signal,
            3 => Kind::Parcels,
            4 => Kind::Children,
            5 => Kind::Rounds,
            6 => Kind::Cancelled,
            _ => Kind::Failing,
        }
    }

    /// The content of a message to it.
    pub(super) fn parcel(&self, index: u64) -> u64 {
        u64::from(self.number) * PARCELS_EACH + index
    }

    /// What it must come to, and with which result.
    pub(super) fn outcome(&self) -> (FlowState, Option<u64>) {
        let number = u64::from(self.number);
        match self.kind() {
            Kind::Steps => (FlowState::Completed, Some(number + 4)),
            Kind::Timer => (FlowState::Completed, Some(number + 2)),
            Kind::Signal => (FlowState::Completed, Some(number * 2 + 1)),
            Kind::Parcels => (FlowState::Completed, Some((0..PARCELS_EACH).map(|index| self.parcel(index)).sum())),
            Kind::Children => {
                let child = self.child().outcome().1;
                (FlowState::Completed, child.map(|child| child * 2))
            }
            Kind::Rounds => (FlowState::Completed, Some(number + u64::from(RUNS))),
            Kind::Cancelled => (FlowState::Cancelled, None),
            Kind::Failing => (FlowState::Failed, None),
        }
    }

    /// Each of the two that do it instead.
    pub(super) fn child(&self) -> Self {
        Self::new(self.number - self.number % KINDS)
    }

    async fn undone_unless_done(&self) -> Result<u64, ergon::Error> {
        let number = self.number;
        let done = saga(async |saga| {
            for place in ["room", "flight"] {
                work(number, place.into()).await?;
                saga.undo(move || work(number, format!("{UNDO}{place}")));
            }
            if self.kind() == Kind::Failing {
                return Err(ergon::Error::permanent("as planned"));
            }
            signal::<u64>("never").await
        });
        done.await.map_err(|error| error.error)
    }
}

/// What the names of steps begin with that undo others.
pub(super) const UNDO: &str = "undo-";

#[flow_type]
impl Errand {
    /// Does it.
    #[flow]
    async fn run(&self) -> ergon::Result<u64> {
        let number = self.number;
        let work = |name: &str| work(number, name.into());
        match self.kind() {
            Kind::Steps => {
                work("first").await?;
                tokio::try_join!(work("left"), work("right"))?;
                work("last").await?;
                Ok(u64::from(number) + 4)
            }
            Kind::Timer => {
                work("before").await?;
                sleep(Duration::from_millis(u64::from(number % 50) * 10)).await;
                work("after").await?;
                Ok(u64::from(number) + 2)
            }
            Kind::Signal => {
                let told: u64 = signal("go").await?;
                work("told").await?;
                Ok(told + u64::from(number) + 1)
            }
            Kind::Parcels => {
                let mut sum = 0;
                for index in 0..PARCELS_EACH {
                    sum += PARCELS.recv().await?;
                    work(&format!("parcel-{index}")).await?;
                }
                Ok(sum)
            }
            Kind::Children => {
                let (left, right) = tokio::try_join!(child(self.child()), child(self.child()))?;
                work("both").await?;
                Ok(left + right)
            }
            Kind::Rounds => {
                work("round").await?;
                sleep(Duration::from_millis(u64::from(number % 3) * 20)).await;
                if self.runs > 1 {
                    return continue_as_new(Self { runs: self.runs - 1, ..self.clone() }).await;
                }
                Ok(u64::from(number) + u64::from(RUNS))
            }
            Kind::Cancelled | Kind::Failing => self.undone_unless_done().await,
        }
    }
}

/// Takes a moment, and some fail at their first attempt. Its outcome is a name that no other step of the flow has.
#[step(retry(max_attempts = 100, backoff = "5ms", max = "50ms"))]
async fn work(number: u32, name: String) -> ergon::Result<String> {
    let diary = state::<Arc<Diary>>();
    let label = format!("{}.{name}", ergon::run_number());
    diary.write("begin", &label);
    tokio::time::sleep(Duration::from_millis(u64::from(number % 4) * 2)).await;
    if attempt() == 1 && (number + u32::try_from(name.len()).unwrap_or(0)).is_multiple_of(5) {
        return Err(ergon::Error::new("the first attempt fails"));
    }
    diary.write("end", &label);
    Ok(label)
}
