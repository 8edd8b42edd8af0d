use ergon::step;

#[step(retry(backoff = "1s..30s", max = "1m"))]
async fn fetch(url: String) -> Result<String, String> {
    Ok(url)
}

fn main() {}
