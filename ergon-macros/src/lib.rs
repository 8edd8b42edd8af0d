//! The attribute macros of ergon.
