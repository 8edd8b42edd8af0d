use ergon::flow;

#[flow(affinity(require = "5s"))]
async fn hasty(to: String) -> Result<String, String> {
    Ok(to)
}

#[flow(affinity(prefer = "3000days"))]
async fn patient(to: String) -> Result<String, String> {
    Ok(to)
}

#[flow(affinity(prefer = "5s", require))]
async fn both(to: String) -> Result<String, String> {
    Ok(to)
}

fn main() {}
