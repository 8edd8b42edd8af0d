use ergon::step;

struct Url(String);

#[step]
async fn fetch(retries: u32, url: Url, std: Url) -> Result<String, String> {
    Ok(format!("{} {} {retries}", url.0, std.0))
}

fn main() {}
