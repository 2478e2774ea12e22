//! How many TCP segments a namespace has sent, and how many of them again.

use std::ops::{Add, Sub};

use anyhow::Context;

use super::netns::Namespace;

/// Counters of TCP, over both address families.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segments {
    /// Sent, those sent again included.
    pub(crate) sent: u64,
    /// Sent again.
    pub(crate) again: u64,
}

impl Segments {
    /// Reads those of a namespace.
    pub(crate) fn of(namespace: &Namespace) -> anyhow::Result<Self> {
        namespace.inside(Self::here)
    }

    /// Reads those of the namespace that the caller is in.
    pub(crate) fn here() -> anyhow::Result<Self> {
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp");
        Self::parse(&text.context("read TCP counters")?)
            .context("the kernel's TCP counters are not as expected")
    }

    /// Two lines start with `Tcp:`: names, then values.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (lines.next()?, lines.next()?);
        let value = |name: &str| -> Option<u64> {
            let mut pairs = names.split(' ').zip(values.split(' '));
            pairs.find(|(known, _)| *known == name)?.1.parse().ok()
        };
        Some(Self {
            sent: value("OutSegs")? + value("RetransSegs")?,
            again: value("RetransSegs")?,
        })
    }

    /// Share of segments that were sent again, from 0 to 1.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a lab sends far fewer than 2^52 segments"
    )]
    pub(crate) fn share(self) -> f64 {
        if self.sent == 0 {
            0.0
        } else {
            self.again as f64 / self.sent as f64
        }
    }
}

impl Add for Segments {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            again: self.again + other.again,
        }
    }
}

impl Sub for Segments {
    type Output = Self;
    /// What came after `earlier`.
    fn sub(self, earlier: Self) -> Self {
        Self {
            sent: self.sent.saturating_sub(earlier.sent),
            again: self.again.saturating_sub(earlier.again),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: InSegs OutSegs RetransSegs\nTcp: 9 98 2\nUdp: a\n";
        let segments = Segments::parse(text).unwrap();
        assert_eq!(
            segments,
            Segments {
                sent: 100,
                again: 2
            }
        );
        assert!((segments.share() - 0.02).abs() < 1e-9);
    }
}
