use ergon::flow;

#[flow]
async fn ship(order: u64) -> Result<u64, String> {
    ship(order).await
}

fn main() {}
