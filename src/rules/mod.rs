//! How scores and quotas become a subset.

pub mod block_stream;
pub mod blocks;
pub mod herding;
pub mod kernel;
pub mod masses;
pub mod quotas;
pub mod random;
pub mod top_k;
pub mod trim;
pub mod weights;
