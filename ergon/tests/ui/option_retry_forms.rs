use ergon::step;

#[step(retry = 5)]
async fn five(url: String) -> Result<String, String> {
    Ok(url)
}

#[step(retry = persistant)]
async fn misspelled(url: String) -> Result<String, String> {
    Ok(url)
}

#[step(retry)]
async fn bare(url: String) -> Result<String, String> {
    Ok(url)
}

fn main() {}
