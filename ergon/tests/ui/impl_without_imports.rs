use ergon::flow_type;

#[flow_type]
struct Order;

#[flow_type]
impl Order {
    #[flow]
    async fn run(&self) -> Result<(), String> {
        Ok(())
    }
}

fn main() {}
