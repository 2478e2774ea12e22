//! The plainest table with minimal disruption: every row goes to the slot with the highest hash of both.

/// Rows of a rendezvous table (Thaler and Ravishankar, 1998).
pub(super) fn rows(slots: u16, size: u32) -> Vec<u16> {
    (0..size)
        .map(|row| {
            (0..slots)
                .max_by_key(|slot| mix(u64::from(row) << 16 | u64::from(*slot)))
                .unwrap_or_default()
        })
        .collect()
}

/// The finisher of `SplitMix64` (Steele, Lea and Flood, OOPSLA 2014).
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_of_the_slot_that_leaves_change() {
        let (before, after) = (rows(10, 509), rows(9, 509));
        for (before, after) in before.into_iter().zip(after) {
            assert!(before == after || before == 9);
        }
    }
}
