//! Golden packets: one packet, the tables of a node, and what becomes of both.
//!
//! [`cases`] says for each case what must come out, written from scratch by [`packet`]. `../../golden/*.txt` are the same
//! cases with all bytes, counters and changes of flow state spelled out: what reviewers read, and what a change of the
//! packet path has to change. The host (`tests/golden.rs`) and the kernel (`lb-controller/tests/golden.rs`) run the cases,
//! and both have to agree with the files byte for byte. `BOWLINE_GOLDEN=write cargo test -p lb-ebpf --test golden` writes
//! the files anew.

pub(crate) mod cases;
pub(crate) mod host;
pub(crate) mod outcome;
pub(crate) mod packet;
pub(crate) mod scene;
pub(crate) mod text;
