#![deny(unused_must_use)]

use ergon::step;

#[step]
async fn fetch(url: String) -> Result<String, String> {
    Ok(url)
}

fn main() {
    fetch(String::new());
}
