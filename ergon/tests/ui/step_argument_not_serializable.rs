use ergon::step;

#[derive(Clone)]
struct Url(String);

#[step]
async fn fetch(retries: u32, url: Url) -> Result<String, String> {
    Ok(url.0.repeat(retries as usize))
}

fn main() {}
