use ergon::{flow, flow_type};

#[flow_type]
struct Order;

#[flow_type]
impl Order {
    #[flow]
    fn run(&self) -> Result<(), String> {
        Ok(())
    }
}

fn main() {}
