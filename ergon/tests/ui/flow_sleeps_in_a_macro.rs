use ergon::{flow, flow_type};

#[flow_type]
struct Order;

#[flow_type]
impl Order {
    #[flow]
    async fn run(&self) -> Result<u64, String> {
        Ok(tokio::select! {
            () = tokio::time::sleep(std::time::Duration::from_secs(1)) => 1,
        })
    }
}

fn main() {}
