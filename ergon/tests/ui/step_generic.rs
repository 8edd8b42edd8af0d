use ergon::step;

#[step]
async fn fetch<T: Into<String>>(url: T) -> Result<String, String> {
    Ok(url.into())
}

fn main() {}
