use ergon::step;

#[step(retry(max_attempts = 0, backoff = "30s..1s", multiplier = 0.5, jitter = 2.0))]
async fn fetch(url: String) -> Result<String, String> {
    Ok(url)
}

fn main() {}
