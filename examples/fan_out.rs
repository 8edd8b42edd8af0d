//! Child flows: a report starts one flow per city, joins them, and leaves one behind that lives on by itself.
//!
//! ```text
//! cargo run --example fan_out
//! ```
//!
//! One sees the cities counted side by side, the report's result, the timeline of the parent with its children,
//! and the detached flow ending after its parent.

use std::collections::BTreeMap;

use ergon::prelude::*;

/// The parent.
#[flow_type]
struct Report {
    cities: Vec<String>,
}

#[flow_type]
impl Report {
    #[flow]
    async fn run(&self) -> ergon::Result<BTreeMap<String, Result<u64, String>>> {
        // `start` begins a child; its handle is a future that may be awaited any time later. All are started
        // before the first is awaited, so they run at once, on whatever workers there are.
        let children: Vec<_> =
            self.cities.iter().map(|city| (city, child(Census { city: city.clone() }).start())).collect();
        let mut report = BTreeMap::new();
        for (city, child) in children {
            // A child's error is an ordinary error here; the other children are not affected.
            let people = child.await.map_err(|error| error.to_string());
            report.insert(city.clone(), people);
        }
        // The report neither waits for this one nor takes it along when it is cancelled.
        child(Archive { cities: report.len() }).id(format!("{}/archive", flow_id())).start_detached().await;
        Ok(report)
    }
}

/// A child.
#[flow_type]
struct Census {
    city: String,
}

#[flow_type]
impl Census {
    #[flow]
    async fn run(&self) -> ergon::Result<u64> {
        self.count().await
    }

    #[step]
    async fn count(&self) -> ergon::Result<u64> {
        println!("counting {}", self.city);
        tokio::time::sleep(Duration::from_millis(300)).await;
        let letters = self.city.len() as u64;
        match self.city.as_str() {
            "atlantis" => Err(ergon::Error::permanent("there is no such city")),
            _ => Ok(letters * 100_000),
        }
    }
}

/// The flow that stays.
#[flow_type]
struct Archive {
    cities: usize,
}

#[flow_type]
impl Archive {
    #[flow]
    async fn run(&self) -> ergon::Result<String> {
        sleep(Duration::from_millis(500)).await;
        Ok(format!("{} cities archived", self.cities))
    }
}

#[tokio::main]
async fn main() -> ergon::Result<()> {
    let log = SqliteExecutionLog::open_in_memory().await?;
    let worker =
        Worker::new(log.clone()).register::<Report>().register::<Census>().register::<Archive>().start().await?;
    let scheduler = Scheduler::new(log);

    let cities = ["oslo", "lisbon", "atlantis", "vienna", "reykjavik", "rome", "sofia", "riga"];
    let report = Report { cities: cities.map(String::from).to_vec() };
    let report = scheduler.schedule(report).id("report-2024").await?;
    for (city, people) in report.result().await? {
        println!("{city}: {}", people.map_or_else(|error| error, |people| format!("{people} people")));
    }
    println!("\n{}\n", report.history().await?);

    let archive = scheduler.handle::<Archive>(FlowId::new("report-2024/archive")?);
    println!("the report has ended, the archive is {}", archive.status().await?.state);
    println!("the archive says: {}", archive.result().await?);
    worker.shutdown().await;
    Ok(())
}
