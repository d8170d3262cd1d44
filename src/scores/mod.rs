//! How far each example agrees with the other examples of its class.

pub mod consensus;
pub mod scoring;
