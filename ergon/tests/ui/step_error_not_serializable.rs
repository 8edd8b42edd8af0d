use ergon::{flow, step};

enum Refusal {
    Closed,
}

#[step]
async fn fetch(url: String) -> Result<String, Refusal> {
    if url.is_empty() { Err(Refusal::Closed) } else { Ok(url) }
}

#[flow]
async fn read(url: String) -> Result<String, String> {
    // Awaiting it gives no error of its own.
    fetch(url).await.map_err(|Refusal::Closed| "closed".to_owned())
}

fn main() {}
