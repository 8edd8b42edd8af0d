use ergon::{sqlite, step};

#[step(transaction, at_most_once)]
fn book(tx: &sqlite::Transaction<'_>) -> Result<bool, String> {
    Ok(tx.is_autocommit())
}

fn main() {}
