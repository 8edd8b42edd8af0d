use ergon::step;

#[step(name = "")]
async fn fetch(url: String) -> Result<String, String> {
    Ok(url)
}

fn main() {}
