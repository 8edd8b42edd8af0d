use ergon::{flow, flow_type, step};

#[flow_type]
struct Order;

#[flow_type]
impl Order {
    #[flow]
    async fn run(&self) -> Result<(), String> {
        Ok(())
    }

    #[step]
    async fn charge(self) -> Result<(), String> {
        Ok(())
    }

    #[step]
    async fn refund() -> Result<(), String> {
        Ok(())
    }

    #[step]
    async fn note(&mut self) -> Result<(), String> {
        Ok(())
    }
}

fn main() {}
