use ergon::flow_type;

#[flow_type]
struct Order {
    seen: std::time::Instant,
}

fn main() {}
