use ergon::flow;

struct Order;

#[flow]
async fn ship(order: Order) -> Result<u64, String> {
    Ok(1)
}

fn main() {}
