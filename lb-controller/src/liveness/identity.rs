//! Who a member is: the name of its node, where it is reached, and which start of its agent it is. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::template::NodeAddresses;

/// A member. Two of the same node are told apart by their incarnation, and the higher one wins.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// Name of its node.
    #[serde(serialize_with = "write_name", deserialize_with = "read_name")]
    pub node: Arc<str>,
    /// Where it listens; at most one of each family.
    pub addresses: [Option<IpAddr>; 2],
    /// Milliseconds since 1970 when its agent started, or more when it had to come back. 0 stands for one that is known by
    /// its objects only.
    pub incarnation: u64,
}

impl Identity {
    /// One that is known by its objects only.
    pub fn unheard(node: Arc<str>, addresses: NodeAddresses) -> Self {
        Self::new(node, addresses, 0)
    }

    /// A member.
    pub fn new(node: Arc<str>, NodeAddresses { v4, v6 }: NodeAddresses, incarnation: u64) -> Self {
        Self {
            node,
            addresses: [v4.map(IpAddr::V4), v6.map(IpAddr::V6)],
            incarnation,
        }
    }

    /// Where `self` reaches `other`: IPv4 if both have it, else IPv6, as for encapsulated packets.
    pub fn reach(&self, other: &Self) -> Option<IpAddr> {
        let both = self.addresses.iter().zip(other.addresses);
        both.filter(|(own, _)| own.is_some())
            .find_map(|(_, theirs)| theirs)
    }
}

impl foca::Identity for Identity {
    type Addr = Arc<str>;

    /// A node that was taken for dead comes back as its own successor.
    fn renew(&self) -> Option<Self> {
        Some(Self {
            incarnation: self.incarnation.saturating_add(1),
            ..self.clone()
        })
    }

    fn addr(&self) -> Arc<str> {
        Arc::clone(&self.node)
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.incarnation > adversary.incarnation
    }
}

fn write_name<S: Serializer>(name: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name)
}

fn read_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
    String::deserialize(deserializer).map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(v4: Option<[u8; 4]>, v6: bool) -> Identity {
        let addresses = NodeAddresses {
            v4: v4.map(Into::into),
            v6: v6.then_some(std::net::Ipv6Addr::LOCALHOST),
        };
        Identity::new("n".into(), addresses, 1)
    }

    #[test]
    fn members_are_reached_over_a_family_that_both_have() {
        let (both, four, six) = (
            of(Some([1, 1, 1, 1]), true),
            of(Some([2, 2, 2, 2]), false),
            of(None, true),
        );
        assert_eq!(both.reach(&four), Some([2, 2, 2, 2].into()));
        assert_eq!(both.reach(&six), six.addresses[1]);
        assert_eq!(six.reach(&both), both.addresses[1]);
        assert_eq!(four.reach(&six), None);
    }
}
