//! Every shape that a function can have which is a flow.

#![deny(warnings)]

use ergon::{Flow, FlowType, child, flow, step};
use serde::{Deserialize, Serialize};

type Outcome<T> = Result<T, String>;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Order {
    cents: u64,
}

/// Ships an order.
#[flow(name = "ship-it", version = 3, timeout = "1h")]
#[derive(Debug, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
async fn ship(mut order: Order, #[serde(default)] to: Option<String>) -> Outcome<u64> {
    order.cents += 1;
    let to = to.unwrap_or_default();
    let (a, b) = tokio::try_join!(weigh(order.cents), child(nightly()).start())?;
    Ok(a + b + to.len() as u64)
}

#[flow]
async fn nightly() -> Result<u64, String> {
    weigh(1).await
}

#[flow(allow(nondeterminism))]
#[allow(clippy::too_many_arguments)]
pub async fn r#loop(_a: u8, b: (u8, u8), c: Vec<u8>, d: u8, e: u8, f: u8, g: u8, h: u8) -> Outcome<u64> {
    let _ = std::time::SystemTime::now();
    Ok(u64::from(b.0 + d + e + f + g + h) + c.len() as u64)
}

#[cfg(any())]
#[flow]
async fn absent(x: Missing) -> Outcome<Missing> {
    Ok(x)
}

#[step]
async fn weigh(cents: u64) -> Outcome<u64> {
    Ok(cents)
}

/// The name of an argument means nothing to what is generated.
#[flow]
async fn names(this: u8, flow: u8, args: u8, future: u8) -> Outcome<u8> {
    Ok(this + flow + args + future)
}

mod inner {
    #[ergon::flow]
    pub(crate) async fn elsewhere(text: String) -> ergon::Result<String> {
        Ok(text)
    }
}

fn main() {
    use inner::elsewhere;

    #[flow]
    async fn local(x: u8) -> Outcome<u8> {
        Ok(x)
    }

    let value = ship(Order { cents: 1 }, None);
    assert_eq!(value.clone(), value);
    assert_eq!(<ship as Flow>::NAME, "ship-it");
    assert_eq!(<ship as FlowType>::VERSION, 3);
    assert_eq!(<ship as Flow>::TIMEOUT, Some(std::time::Duration::from_secs(3600)));
    assert!(<ship as Flow>::STEPS.is_empty());
    assert_eq!(serde_json::to_string(&value).unwrap(), r#"{"order":{"cents":1},"to":null}"#);
    assert_eq!(serde_json::from_str::<ship>(r#"{"order":{"cents":1}}"#).unwrap(), value);
    assert!(serde_json::from_str::<ship>(r#"{"order":{"cents":1},"from":1}"#).is_err());
    assert_eq!(<nightly as Flow>::NAME, "nightly");
    assert_eq!(serde_json::to_string(&nightly()).unwrap(), "{}");
    assert_eq!(<r#loop as Flow>::NAME, "loop");
    assert_eq!(<elsewhere as Flow>::NAME, "elsewhere");
    let ran = futures::executor::block_on(elsewhere("a".into()).execute());
    assert_eq!(ran.unwrap(), "a");
    assert_eq!(futures::executor::block_on(names(1, 2, 3, 4).execute()), Ok(10));
    assert_eq!(futures::executor::block_on(local(1).execute()), Ok(1));
    assert_eq!(futures::executor::block_on(r#loop(0, (1, 1), vec![1], 1, 1, 1, 1, 1).execute()), Ok(7));
}
