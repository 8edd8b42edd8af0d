use ergon::step;

const PATIENT: u32 = 5;

#[step(retry = PATIENT)]
async fn fetch(url: String) -> Result<String, String> {
    Ok(url)
}

fn main() {}
