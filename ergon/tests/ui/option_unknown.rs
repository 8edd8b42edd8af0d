use ergon::step;

#[step(timeot = "10s", colour = 1)]
async fn fetch(url: String) -> Result<String, String> {
    Ok(url)
}

fn main() {}
