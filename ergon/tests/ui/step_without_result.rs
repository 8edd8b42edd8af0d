use ergon::step;

#[step]
async fn fetch(url: String) -> Option<String> {
    Some(url)
}

fn main() {}
