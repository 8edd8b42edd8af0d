use ergon::step;

#[step]
struct Charge;

fn main() {}
