use ergon::flow;

#[flow]
async fn ship(order: &str, (a, b): (u8, u8), tags: std::collections::HashSet<u8>) -> Result<u64, String> {
    Ok(order.len() as u64)
}

fn main() {
    // Calls must give no errors of their own.
    let _ = ship("", (1, 2), Default::default());
}
