use ergon::{flow_type, step};

#[flow_type]
struct Order;

#[flow_type]
impl Order {
    #[step]
    async fn charge(&self) -> Result<(), String> {
        Ok(())
    }
}

fn main() {}
