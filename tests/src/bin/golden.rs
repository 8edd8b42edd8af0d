//! Writes what the golden tests of later versions read: `golden FOLDER`.

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let folder = std::env::args_os().nth(1).expect("the folder of the release");
    ergon_tests::golden::write(folder.as_ref()).await;
}
