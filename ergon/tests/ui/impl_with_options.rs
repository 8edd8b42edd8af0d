use ergon::{flow, flow_type};

#[flow_type]
struct Order;

#[flow_type(version = 2)]
impl Order {
    #[flow]
    async fn run(&self) -> Result<(), String> {
        Ok(())
    }
}

fn main() {}
