use ergon::step;

#[step(blocking)]
async fn fetch(url: String) -> Result<String, String> {
    Ok(url)
}

fn main() {}
