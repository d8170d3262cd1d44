//! Frequent Directions, and what is carried along with it: consensus sums and coordinates.

pub mod coordinates;
pub mod eigen;
pub mod folded;
pub mod shrink;
pub mod state;
