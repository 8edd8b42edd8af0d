use ergon::{flow, step};

#[flow(retry = none)]
async fn options() -> Result<u64, String> {
    Ok(1)
}

#[flow(version = 0)]
fn plain<T>(#[cfg(unix)] of: impl Copy) {}

#[flow]
#[step]
async fn both() -> Result<u64, String> {
    Ok(1)
}

#[flow]
async fn clock() -> Result<u64, String> {
    std::time::SystemTime::now();
    Ok(1)
}

#[flow]
struct Order;

fn main() {
    let _ = ergon::child(options());
}
