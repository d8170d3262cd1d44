//! Numbers that follow from a seed. They are part of saved results, so they never change.

pub mod count_sketch;
pub mod draw;
pub mod reservoir;
