use ergon::step;

#[step(timeout = "10")]
async fn no_unit(url: String) -> Result<String, String> {
    Ok(url)
}

#[step(timeout = "0s")]
async fn zero(url: String) -> Result<String, String> {
    Ok(url)
}

fn main() {}
