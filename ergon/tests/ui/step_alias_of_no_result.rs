use ergon::step;

type Page = String;

#[step]
async fn fetch(url: String) -> Page {
    url
}

fn main() {}
