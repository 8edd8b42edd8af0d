use ergon::{Flow, flow, flow_type, step};

#[flow_type]
struct Order;

// All of these are reported at once, and what uses the flow does not fail as well.
#[flow_type]
impl Order {
    #[flow(timeout = "soon")]
    async fn run(&self) -> Result<(), String> {
        println!("{}", std::process::id());
        self.charge(1).await
    }

    #[step(retry(tries = 5), timeout = 10)]
    async fn charge(&self, _cents: u64) -> Result<(), String> {
        Ok(())
    }
}

fn main() {
    let _ = Order.execute();
}
