use ergon::flow_type;

#[flow_type]
union Order {
    id: u32,
}

fn main() {}
