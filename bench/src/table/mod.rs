//! stub
use crate::report::Aim;
use crate::{Length, Outcome};
pub(crate) const AIMS: &[Aim] = &[];
pub(crate) fn run(_: Length, _: &str) -> anyhow::Result<Outcome> {
    Ok(Outcome::default())
}
pub(crate) fn equal_rows(n: u32) -> Vec<u16> {
    let size = match n {
        100 => 16381,
        _ => 509,
    };
    (0..size)
        .map(|i: u32| (i.wrapping_mul(2_654_435_761) >> 7) as u16 % n as u16)
        .collect()
}
