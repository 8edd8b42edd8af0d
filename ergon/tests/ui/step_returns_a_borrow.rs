use ergon::step;

#[step]
async fn fetch(url: &str) -> Result<&str, String> {
    Ok(url)
}

fn main() {}
