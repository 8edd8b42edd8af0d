//! The examples are the programs beside this crate; see the `[[example]]` entries of its manifest.
