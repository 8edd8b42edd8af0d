use ergon::flow;

#[flow]
async fn ship(order: u64) -> Result<u64, String> {
    let count = std::rc::Rc::new(order);
    std::future::ready(()).await;
    Ok(*count)
}

fn main() {}
