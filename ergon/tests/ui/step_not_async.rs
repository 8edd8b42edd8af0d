use ergon::step;

#[step]
fn fetch(url: String) -> Result<String, String> {
    Ok(url)
}

fn main() {}
