//! The compiled core of `sage_torch`: which training examples are worth a gradient step.
//!
//! The data flow, left to right; a file uses only files to its left:
//!
//! `rows of gradients -> count_sketch -> (rows, panels, pool -> host | device products)
//!  -> (secular -> tridiagonal -> eigen) -> shrink -> coordinates -> folded -> sketch
//!  -> consensus -> quotas, top_k, draw, reservoir -> trim -> strata, weighted
//!  -> kernel -> herding, facility_location -> blocks -> weights -> block_stream -> scoring -> python`
//!
//! Axis letters in comments: `n` examples of a batch, `N` of the data set, `D` gradient length, `d`
//! after compression, `l` sketch rows, `b` rows between two shrinks, `C` classes, `k` kept.
//!
//! Without the feature `python` only the files that need neither torch nor Python are built.

pub mod aligned;
pub mod block_stream;
pub mod blocks;
pub mod consensus;
pub mod coordinates;
pub mod count_sketch;
pub mod draw;
pub mod eigen;
pub mod error;
pub mod facility_location;
pub mod folded;
pub mod herding;
pub mod host;
pub mod kernel;
pub mod panels;
pub mod pool;
pub mod ql_iteration;
pub mod quotas;
pub mod reflections;
pub mod reservoir;
pub mod rows;
pub mod scoring;
pub mod secular;
pub mod shrink;
pub mod sketch;
pub mod strata;
#[cfg(test)]
mod test_numbers;
pub mod top_k;
pub mod transpose;
pub mod tridiagonal;
pub mod trim;
pub mod weighted;
pub mod weights;

#[cfg(feature = "python")]
mod device;
#[cfg(feature = "python")]
mod python;
#[cfg(feature = "python")]
mod tensor;
