//! Ranking the columns of a table by what they tell of a label (Škrlj and Mramor 2023, "OutRank").
//!
//! A [`reader::Reader`] turns text into batches of [`column::Column`]s, each a code a row; [`score::score`] scores
//! pairs of them; [`derive`] makes new columns of old ones; [`state::Tables`] keeps what is to be known of the whole
//! stream, and merges.

pub mod column;
pub mod contingency;
pub mod derive;
pub mod dictionary;
pub mod greedy;
pub mod hash;
pub mod information;
pub mod integers;
pub mod logarithms;
pub mod reader;
pub mod score;
pub mod shard;
pub mod sketch;
pub mod state;
