use ergon::flow;

struct Order;

impl Order {
    #[flow]
    async fn run(&self) -> Result<(), String> {
        Ok(())
    }
}

fn main() {}
