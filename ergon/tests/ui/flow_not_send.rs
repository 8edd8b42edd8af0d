use ergon::{flow, flow_type};

#[flow_type]
struct Order;

#[flow_type]
impl Order {
    #[flow]
    async fn run(&self) -> Result<u64, String> {
        let count = std::rc::Rc::new(1);
        std::future::ready(()).await;
        Ok(*count)
    }
}

fn main() {}
