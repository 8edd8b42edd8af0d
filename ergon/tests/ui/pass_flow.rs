//! Every shape that a flow and its steps can have.

#![deny(warnings)]

use std::borrow::Cow;

use ergon::{Flow, FlowType, RetryPolicy, flow, flow_type, step};

type Outcome<T> = Result<T, String>;

const PATIENT: RetryPolicy = RetryPolicy::new().max_attempts(9);

#[flow_type(name = "order", version = 2)]
#[derive(Clone)]
struct Order {
    #[serde(default)]
    cents: u64,
}

#[flow_type]
impl Order {
    const POLICY: RetryPolicy = RetryPolicy::STANDARD;

    #[flow(name = "orders", version = 3, timeout = "1h", retention = "30d", affinity(require = "2m"))]
    async fn run(&self) -> Outcome<u64> {
        let (a, b) = tokio::try_join!(self.charge(self.cents, "card"), self.pair((1, 2), 3))?;
        let first = tokio::select! {
            c = self.note("a".into()) => c?,
            d = async { self.resize(String::new()).await } => d?,
        };
        self.nothing().await?;
        Ok(a + b + first)
    }

    /// A documented step.
    #[step(
        name = "charge-card",
        retry(max_attempts = 5, backoff = "1s..30s", multiplier = 2.0, jitter = 0.2),
        timeout = "10s"
    )]
    async fn charge(&self, mut cents: u64, card: &str) -> Result<u64, String> {
        cents += card.len() as u64;
        Ok(cents)
    }

    #[step(retry = PATIENT)]
    async fn pair(&self, (a, b): (u64, u64), args: u64) -> Outcome<u64> {
        Ok(a + b + args)
    }

    #[step(retry = Self::POLICY)]
    async fn note(&self, text: Cow<'_, str>) -> Outcome<u64> {
        Ok(text.len() as u64)
    }

    #[step(blocking, retry = persistent)]
    fn resize(&self, path: String) -> Outcome<u64> {
        Ok(path.len() as u64)
    }

    #[cfg(any())]
    #[step]
    async fn missing(&self) -> Outcome<u64> {
        nowhere()
    }

    #[ergon::step(retry = none)]
    async fn nothing(&self) -> Outcome<()> {
        Ok(())
    }
}

// Variants that are named like the associated types of `Flow`, and its method's name.
#[flow_type]
#[derive(ergon::__private::serde::Serialize)]
#[serde(crate = "::ergon::__private::serde")]
enum Unlucky {
    Output,
    Error,
}

#[flow_type]
impl Unlucky {
    #[flow]
    async fn execute(&self) -> Outcome<u8> {
        Ok(match self {
            Self::Output => 1,
            Self::Error => 2,
        })
    }
}

#[step]
async fn fetch(url: &str) -> Outcome<usize> {
    Ok(url.len())
}

#[step(blocking)]
fn hash(bytes: Vec<u8>) -> Outcome<usize> {
    Ok(bytes.len())
}

fn main() {
    assert_eq!(<Order as FlowType>::NAME, "order");
    assert_eq!(<Order as FlowType>::VERSION, 2);
    assert_eq!(<Order as Flow>::NAME, "orders");
    assert_eq!(<Order as Flow>::VERSION, 3);
    assert_eq!(<Order as Flow>::TIMEOUT.map(|timeout| timeout.as_secs()), Some(3600));
    assert_eq!(<Order as Flow>::RETENTION.map(|retention| retention.as_secs()), Some(30 * 24 * 3600));
    assert_eq!(<Unlucky as Flow>::RETENTION, None);
    let takeover = ergon::Takeover::After(std::time::Duration::from_secs(120));
    assert_eq!(<Order as Flow>::AFFINITY, ergon::Affinity::Require { takeover });
    assert_eq!(<Unlucky as Flow>::AFFINITY, ergon::Affinity::Anyone);
    assert_eq!(<Order as Flow>::STEPS, ["charge-card", "pair", "note", "resize", "nothing"]);
    assert_eq!(<Unlucky as Flow>::NAME, "Unlucky");
    let _ = (Unlucky::Output, Unlucky::Error, fetch, hash);
}
