//! The compiled core of `sage_torch`: which training examples are worth a gradient step.
//!
//! Folders stand in the order of the trip; each uses only folders to its left
//! (`tests/unit/test_rust_rooms.py`):
//!
//! `seeded -> products -> sketch -> scores -> rules -> python`
//!
//! - `seeded`: permutations, reservoirs and the count sketch, all from a seed.
//! - `products`: long products with rows of gradients, on host memory or on torch tensors.
//! - `sketch`: the sketch of all rows, with consensus sums and coordinates carried along.
//! - `scores`: the consensus of each class, agreement and margin of each example.
//! - `rules`: from scores to the examples that are kept.
//! - `python`: the module `_core` that Python imports.
//!
//! Axis letters in comments: `n` examples of a batch, `N` of the data set, `D` gradient length, `d`
//! after compression, `l` sketch rows, `b` rows between two shrinks, `C` classes, `k` kept.
//!
//! Without the feature `python` only the files that need neither torch nor Python are built.

pub mod error;
pub mod products;
#[cfg(feature = "python")]
mod python;
pub mod rules;
pub mod scores;
pub mod seeded;
pub mod sketch;
#[cfg(test)]
mod test_numbers;
