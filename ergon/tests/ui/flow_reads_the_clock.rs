use ergon::{flow, flow_type};

#[flow_type]
struct Order;

#[flow_type]
impl Order {
    #[flow]
    async fn run(&self) -> Result<u64, String> {
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::SystemTime::UNIX_EPOCH);
        Ok(since.map_err(|error| error.to_string())?.as_secs())
    }
}

fn main() {}
