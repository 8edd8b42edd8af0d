use ergon::step;

use std::collections::HashSet;

#[step]
async fn fetch(urls: &HashSet<String>) -> Result<usize, String> {
    Ok(urls.len())
}

fn main() {}
