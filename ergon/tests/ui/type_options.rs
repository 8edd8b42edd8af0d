use ergon::flow_type;

#[flow_type(nam = "order", version = 0)]
struct Order {
    id: u32,
}

fn main() {}
