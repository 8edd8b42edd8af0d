use ergon::{flow, flow_type};

#[flow_type]
struct Order;

#[flow_type]
impl Order {
    #[flow]
    async fn run(&self) -> Result<(), String> {
        tokio::spawn(async {}).await.map_err(|error| error.to_string())
    }
}

fn main() {}
