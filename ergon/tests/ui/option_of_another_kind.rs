use ergon::step;

#[step(name = fetch, timeout = 10, retry(max_attempts = "5", jitter = "0.2"))]
async fn fetch(url: String) -> Result<String, String> {
    Ok(url)
}

fn main() {}
