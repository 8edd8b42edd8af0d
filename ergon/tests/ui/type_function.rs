use ergon::flow_type;

#[flow_type]
async fn run() {}

fn main() {}
