use ergon::step;

#[step]
async fn fetch(url: String) -> Result<String, String> {
    let url = std::rc::Rc::new(url);
    std::future::ready(()).await;
    Ok(url.to_string())
}

fn main() {}
