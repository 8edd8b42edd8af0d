use ergon::step;

struct Images;

impl Images {
    #[step(blocking)]
    fn resize(&self, path: String) -> Result<String, String> {
        Ok(path)
    }
}

fn main() {}
