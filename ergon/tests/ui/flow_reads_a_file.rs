use ergon::{flow, flow_type};

#[flow_type]
struct Order;

#[flow_type]
impl Order {
    #[flow]
    async fn run(&self) -> Result<String, String> {
        std::fs::read_to_string("order.txt").map_err(|error| error.to_string())
    }
}

fn main() {}
