use ergon::step;

#[step(blocking)]
fn fetch(url: &str) -> Result<String, String> {
    Ok(url.to_owned())
}

fn main() {}
