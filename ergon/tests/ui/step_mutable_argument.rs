use ergon::step;

#[step]
async fn fetch(urls: &mut Vec<String>) -> Result<usize, String> {
    Ok(urls.len())
}

fn main() {}
