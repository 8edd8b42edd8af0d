use ergon::flow_type;

trait Job {
    fn name(&self) {}
}

#[flow_type]
struct Order;

#[flow_type]
impl Job for Order {}

fn main() {}
