use ergon::flow_type;

#[flow_type]
struct Order<T> {
    item: T,
}

fn main() {}
