//! Metrics for Prometheus: a worker whose counters, gauges and histograms can be scraped over HTTP.
//!
//! ```text
//! cargo run --example metrics
//! curl -s localhost:9464/metrics | grep ergon_
//! ```
//!
//! One sees flows that are scheduled, end and fail, a step that is tried again, and how long the log takes to answer. It
//! runs until Ctrl-C. The names are in docs/metrics.md.

use std::net::SocketAddr;

use ergon::prelude::*;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};

#[flow_type]
struct Order {
    number: u64,
}

#[flow_type]
impl Order {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        let payment = self.charge().await?;
        sleep(Duration::from_millis(200)).await;
        Ok(payment)
    }

    /// Each third order fails once, each tenth for good.
    #[step(retry(max_attempts = 3, backoff = "20ms..1s"))]
    async fn charge(&self) -> ergon::Result<String> {
        if self.number.is_multiple_of(10) {
            return Err(ergon::Error::permanent("the card is blocked"));
        }
        if self.number.is_multiple_of(3) && attempt() == 1 {
            return Err(ergon::Error::new("the bank does not answer"));
        }
        Ok(format!("payment of order {}", self.number))
    }
}

#[tokio::main]
async fn main() -> ergon::Result<()> {
    let mut args = std::env::args().skip(1);
    let address: SocketAddr = args.next().unwrap_or("127.0.0.1:9464".into()).parse()?;

    // First the recorder: what is made before it is not measured.
    PrometheusBuilder::new()
        .with_http_listener(address)
        .set_buckets_for_metric(
            Matcher::Suffix("_seconds".into()),
            &[0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 120.0, 600.0, 3_600.0],
        )?
        .install()?;

    let log = SqliteExecutionLog::open_in_memory().await?;
    let worker =
        Worker::new(log.clone()).register::<Order>().slots(16).sampling(Duration::from_secs(1)).start().await?;
    println!("scrape http://{address}/metrics");

    let scheduler = Scheduler::new(log);
    let schedule = async {
        for number in 1.. {
            scheduler.schedule(Order { number }).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok::<(), ergon::Error>(())
    };
    tokio::select! {
        result = schedule => result?,
        _ = tokio::signal::ctrl_c() => {}
    }
    worker.shutdown().await;
    Ok(())
}
