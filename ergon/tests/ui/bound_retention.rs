use ergon::{flow, flow_type};

#[flow_type(retention = "30d")]
struct Order;

#[flow_type]
impl Order {
    #[flow(retention = "0s")]
    async fn run(&self) -> Result<(), String> {
        Ok(())
    }
}

#[flow(retention = 30)]
async fn ship(to: String) -> Result<String, String> {
    Ok(to)
}

fn main() {}
