//! The execution log of ergon.
