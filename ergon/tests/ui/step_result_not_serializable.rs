use ergon::step;

struct Page(String);

#[step]
async fn fetch(url: String) -> Result<Page, String> {
    Ok(Page(url))
}

fn main() {}
