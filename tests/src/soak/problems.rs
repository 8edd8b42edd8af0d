//! What was found to be wrong.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

/// A file to which every process of a soak adds what it finds.
#[derive(Debug, Clone)]
pub(super) struct Problems(PathBuf);

impl Problems {
    /// The file in this folder.
    pub(super) fn in_folder(folder: &Path) -> Self {
        Self(folder.join("problems"))
    }

    /// Notes one.
    pub(super) fn tell(&self, problem: &str) {
        let mut file = OpenOptions::new().create(true).append(true).open(&self.0).expect("the file can be opened");
        file.write_all(format!("{}\n", problem.replace('\n', " ")).as_bytes()).expect("the file can be written");
    }

    /// All that were noted.
    pub(super) fn all(&self) -> Vec<String> {
        fs::read_to_string(&self.0).unwrap_or_default().lines().map(str::to_owned).collect()
    }
}
