//! Frequent Directions, with the consensus sums and coordinates that are carried along.

pub mod coordinates;
pub mod eigen;
pub mod folded;
pub mod shrink;
pub mod state;
