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
    async fn charge(&self) -> Result<(), String> {
        Ok(())
    }

    #[step(name = "charge")]
    async fn charge_again(&self) -> Result<(), String> {
        Ok(())
    }
}

fn main() {}
