#![deny(unused_must_use)]

use ergon::flow;

#[flow]
async fn ship(order: u64) -> Result<u64, String> {
    ship(order);
    Ok(order)
}

fn main() {}
