//! A flow that a macro of the user's writes, and a flow in a function.

macro_rules! order {
    ($name:ident, $result:ty, $timeout:literal, $cents:expr) => {
        #[ergon::flow_type]
        struct $name;

        #[ergon::flow_type]
        impl $name {
            #[ergon::flow]
            async fn run(&self) -> $result {
                self.charge($cents).await
            }

            #[ergon::step(timeout = $timeout)]
            async fn charge(&self, cents: u64) -> $result {
                Ok(cents)
            }
        }
    };
}

order!(Order, Result<u64, String>, "10s", 1);

fn main() {
    order!(Local, Result<u64, String>, "20s", 2);
    assert_eq!(<Local as ergon::Flow>::STEPS, ["charge"]);
    assert_eq!(<Order as ergon::Flow>::STEPS, ["charge"]);
}
