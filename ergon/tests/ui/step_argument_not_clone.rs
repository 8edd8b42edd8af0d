use ergon::step;

struct Url(String);

impl ergon::__private::serde::Serialize for Url {
    fn serialize<S: ergon::__private::serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

#[step]
async fn fetch(url: Url) -> Result<String, String> {
    Ok(url.0)
}

fn main() {}
