//! Frequent Directions, and what is carried along with it: consensus sums and coordinates.

pub mod coordinates;
pub mod eigen;
pub mod folded;
pub mod ql_iteration;
pub mod reflections;
pub mod secular;
pub mod shrink;
pub mod state;
pub mod tridiagonal;
