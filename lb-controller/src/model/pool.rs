//! One pool of addresses, read from its object and checked: which addresses it has, and who may use them.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;

use super::claim::Claim;
use super::service::is_unicast;
use crate::api::address_pool::{AddressPool, Sharing};
use crate::api::selector::{self, Labels};
use crate::api::service_table::Family;

/// Addresses from a first to a last one, both included, of one family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Range {
    /// The first.
    pub first: IpAddr,
    /// The last.
    pub last: IpAddr,
}

/// What is wrong with a pool, and what to change.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PoolFault {
    /// An entry that is no range.
    #[error(
        "{0:?} is not a range of addresses; write a CIDR such as 198.51.100.0/28, or first-last"
    )]
    Malformed(String),
    /// First after last, or two families.
    #[error("{0:?} does not go from a lower to a higher address of one family; correct it")]
    Backwards(String),
    /// Nobody can have these.
    #[error(
        "{0:?} has addresses that cannot be VIPs; use unicast addresses that are neither loopback nor link-local"
    )]
    Unusable(String),
    /// Another pool has some of them.
    #[error("{range} overlaps with pool {other}, which is older and used; change one of them")]
    Overlaps {
        /// The range.
        range: Range,
        /// The other pool.
        other: String,
    },
    /// No addresses.
    #[error("it has no addresses; add a CIDR or a range to spec.addresses")]
    Empty,
    /// A selector that is none.
    #[error("{0}; correct the selector")]
    Selector(#[from] selector::SelectorError),
}

impl PoolFault {
    /// One word in camel case, for conditions.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) | Self::Backwards(_) | Self::Unusable(_) => "AddressesInvalid",
            Self::Overlaps { .. } => "Overlapping",
            Self::Empty => "Empty",
            Self::Selector(_) => "SelectorInvalid",
        }
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl Range {
    /// Reads a CIDR or `first-last`.
    pub fn parse(text: &str) -> Result<Self, PoolFault> {
        let malformed = || PoolFault::Malformed(text.to_owned());
        let text_of = text.trim();
        let range = if let Ok(net) = text_of.parse::<IpNet>() {
            Self {
                first: net.network(),
                last: net.broadcast(),
            }
        } else {
            let (first, last) = text_of.split_once('-').ok_or_else(malformed)?;
            Self {
                first: first.trim().parse().map_err(|_| malformed())?,
                last: last.trim().parse().map_err(|_| malformed())?,
            }
        };
        if Family::of(range.first) != Family::of(range.last) || range.first > range.last {
            return Err(PoolFault::Backwards(text.to_owned()));
        }
        // A range whose ends are ordinary could still span others, but no network of the world does.
        if !(is_unicast(range.first) && is_unicast(range.last)) {
            return Err(PoolFault::Unusable(text.to_owned()));
        }
        Ok(range)
    }

    /// Whether it has an address.
    pub fn contains(self, address: IpAddr) -> bool {
        Family::of(address) == Family::of(self.first)
            && self.first <= address
            && address <= self.last
    }

    fn overlaps(self, other: Self) -> bool {
        Family::of(self.first) == Family::of(other.first)
            && self.first <= other.last
            && other.first <= self.last
    }

    /// How many addresses, at most `u128::MAX`.
    pub fn len(self) -> u128 {
        number(self.last) - number(self.first)
            + u128::from(number(self.last) - number(self.first) != u128::MAX)
    }

    /// Never: a range has a first address.
    pub fn is_empty(self) -> bool {
        false
    }
}

/// An address as a number.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The next address, of the same family; none after the last of all.
pub(super) fn after(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => {
            Some(std::net::Ipv4Addr::from_bits(address.to_bits().checked_add(1)?).into())
        }
        IpAddr::V6(address) => {
            Some(std::net::Ipv6Addr::from_bits(address.to_bits().checked_add(1)?).into())
        }
    }
}

/// A pool that can be used.
#[derive(Clone, PartialEq, Debug)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Its ranges, in its order.
    pub ranges: Vec<Range>,
    /// IPv4 addresses that end in 0 or 255 are left out.
    pub avoid_buggy: bool,
    /// Services that ask for none get its addresses.
    pub auto: bool,
    /// Higher ones first.
    pub priority: i32,
    /// Whether sharers must be of one namespace.
    pub sharing: Sharing,
    object: AddressPool,
}

impl Pool {
    /// Reads a pool.
    pub fn parse(object: &AddressPool) -> Result<Self, PoolFault> {
        let spec = &object.spec;
        let ranges: Vec<Range> = spec
            .addresses
            .iter()
            .map(|text| Range::parse(text))
            .collect::<Result<_, _>>()?;
        let pool = Self {
            name: object.metadata.name.clone().unwrap_or_default(),
            created: object.metadata.creation_timestamp.as_ref().map(|t| t.0),
            ranges,
            avoid_buggy: spec.avoid_buggy_ips,
            auto: spec.auto_assign,
            priority: spec.priority,
            sharing: spec.sharing,
            object: object.clone(),
        };
        for selector in [&spec.namespace_selector, &spec.service_selector]
            .into_iter()
            .flatten()
        {
            selector::matches(selector, &Labels::new())?;
        }
        let gives =
            |range: &Range| range.len() > 2 || pool.gives(range.first) || pool.gives(range.last);
        if !pool.ranges.iter().any(gives) {
            return Err(PoolFault::Empty);
        }
        Ok(pool)
    }

    /// Whether an address may be given out.
    pub fn gives(&self, address: IpAddr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
            && !(self.avoid_buggy && is_buggy(address))
    }

    /// Whether a Service may have its addresses; `labels` are those of its namespace.
    pub fn admits(&self, claim: &Claim, labels: Option<&Labels>) -> bool {
        let spec = &self.object.spec;
        let none = Labels::new();
        let matches =
            |selector, labels: &Labels| selector::matches(selector, labels).unwrap_or(false);
        let by_name = spec.service_namespaces.contains(&claim.namespace);
        let by_label = spec
            .namespace_selector
            .as_ref()
            .is_some_and(|selector| matches(selector, labels.unwrap_or(&none)));
        let anywhere = spec.service_namespaces.is_empty() && spec.namespace_selector.is_none();
        let selected = spec
            .service_selector
            .as_ref()
            .is_none_or(|selector| matches(selector, &claim.labels));
        (anywhere || by_name || by_label) && selected
    }

    /// Where it overlaps with another.
    pub fn overlap(&self, other: &Self) -> Option<Range> {
        let meets = |range: &Range| other.ranges.iter().any(|theirs| range.overlaps(*theirs));
        self.ranges.iter().copied().find(meets)
    }
}

/// Some networks refuse addresses that would be a network's or its broadcast address if networks were still classes.
pub(super) fn is_buggy(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(address) if matches!(address.octets()[3], 0 | 255))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cidrs_or_first_and_last() {
        let range = |text| Range::parse(text).map(|range| range.to_string());
        assert_eq!(
            range("198.51.100.4/30").unwrap(),
            "198.51.100.4-198.51.100.7"
        );
        assert_eq!(
            range("2001:db8::1-2001:db8::9").unwrap(),
            "2001:db8::1-2001:db8::9"
        );
        for wrong in [
            "",
            "198.51.100.4",
            "9.9.9.9-1.1.1.1",
            "1.1.1.1-::1",
            "127.0.0.0/8",
            "224.0.0.0/4",
            "1.1.1.1/33",
        ] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
    }
}
