use ergon::step;

#[step(timeout = "10s", timeout = "20s")]
async fn fetch(url: String) -> Result<String, String> {
    Ok(url)
}

fn main() {}
