use ergon::{flow, flow_type};

#[flow_type]
struct Order;

#[flow_type]
impl Order {
    #[flow(retry = none, allow(nondeterminsm))]
    async fn run(&self) -> Result<(), String> {
        Ok(())
    }
}

fn main() {}
