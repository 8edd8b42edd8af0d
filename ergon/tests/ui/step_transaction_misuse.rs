use ergon::{sqlite, step};

#[step(transaction)]
fn without_the_transaction(cents: u64) -> Result<u64, String> {
    Ok(cents)
}

#[step(transaction, blocking)]
fn blocking(tx: &sqlite::Transaction<'_>) -> Result<bool, String> {
    Ok(tx.is_autocommit())
}

#[step(transaction, timeout = "1s")]
fn with_a_limit(tx: &sqlite::Transaction<'_>) -> Result<bool, String> {
    Ok(tx.is_autocommit())
}

#[step(transaction)]
fn borrows(tx: &sqlite::Transaction<'_>, name: &str) -> Result<bool, String> {
    Ok(tx.is_autocommit() && name.is_empty())
}

fn main() {}
