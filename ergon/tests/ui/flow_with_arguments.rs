use ergon::{flow, flow_type};

#[flow_type]
struct Order;

#[flow_type]
impl Order {
    #[flow]
    async fn run(&self, cents: u64) -> Result<u64, String> {
        Ok(cents)
    }
}

fn main() {}
