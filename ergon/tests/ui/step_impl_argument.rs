use ergon::step;

#[step]
async fn fetch(url: impl Into<String>) -> Result<String, String> {
    Ok(url.into())
}

fn main() {}
