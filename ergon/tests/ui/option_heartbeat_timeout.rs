use ergon::step;

#[step(heartbeat_timeout = "soon")]
async fn no_duration(url: String) -> Result<String, String> {
    Ok(url)
}

#[step(heartbeat_timeout = "10s", timeout = "10s")]
async fn too_long(url: String) -> Result<String, String> {
    Ok(url)
}

fn main() {}
