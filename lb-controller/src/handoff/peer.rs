//! Who is at the other end: names in a certificate, the address that a connection comes from, and what the peer says of
//! itself, against the nodes that we know. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::template::NodeAddresses;

/// Name in the certificates that agents of all nodes share. `NODE.agent.bowline` is for one node only.
pub const AGENT_NAME: &str = "agent.bowline";
/// Name in the manager's certificate.
pub const MANAGER_NAME: &str = "manager.bowline";

/// Which program a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// An agent.
    Agent,
    /// The manager.
    Manager,
}

impl Role {
    /// Whether a certificate with these names is one for us; else the name that it should have.
    pub(super) fn check_own(self, names: &[String], node: &str) -> Result<(), String> {
        match self {
            Self::Agent if speaks_for(names, node) => Ok(()),
            Self::Agent => Err(format!("{AGENT_NAME} or {}", node_name(node))),
            Self::Manager if is_manager(names) => Ok(()),
            Self::Manager => Err(MANAGER_NAME.to_owned()),
        }
    }
}

/// Why a peer is refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, thiserror::Error)]
pub enum Stranger {
    /// No certificate of an agent.
    #[error("its certificate is not for an agent")]
    NoAgent,
    /// No certificate of the manager.
    #[error("its certificate is not for the manager")]
    NoManager,
    /// No node of that name.
    #[error("there is no node of that name")]
    UnknownNode,
    /// Another machine.
    #[error("it comes from an address that the node does not have")]
    Address,
    /// Another node.
    #[error("its certificate is for another node")]
    OtherNode,
}

/// The name in a certificate of one node's agent only.
pub(super) fn node_name(node: &str) -> String {
    format!("{node}.{AGENT_NAME}")
}

/// Whether these names are the manager's.
pub fn is_manager(names: &[String]) -> bool {
    names.iter().any(|name| name == MANAGER_NAME)
}

/// Nodes that a certificate is for; none if it is for all.
fn nodes_of(names: &[String]) -> impl Iterator<Item = &str> {
    names
        .iter()
        .filter_map(|name| name.strip_suffix(AGENT_NAME)?.strip_suffix('.'))
}

/// A name of one node binds the certificate to it, whatever other names there are.
fn speaks_for(names: &[String], node: &str) -> bool {
    let mut bound = nodes_of(names).peekable();
    if bound.peek().is_none() {
        return names.iter().any(|name| name == AGENT_NAME);
    }
    bound.any(|name| name == node)
}

/// Which node an agent speaks for: the one that it names, if all that we can check agrees.
pub fn node_of(
    names: &[String],
    from: IpAddr,
    said: &str,
    nodes: &BTreeMap<Arc<str>, NodeAddresses>,
) -> Result<Arc<str>, Stranger> {
    if !is_agent(names) {
        return Err(Stranger::NoAgent);
    }
    let Some((node, addresses)) = nodes.get_key_value(said) else {
        return Err(Stranger::UnknownNode);
    };
    if !has(addresses, from) {
        return Err(Stranger::Address);
    }
    if !speaks_for(names, said) {
        return Err(Stranger::OtherNode);
    }
    Ok(Arc::clone(node))
}

fn is_agent(names: &[String]) -> bool {
    nodes_of(names).next().is_some() || names.iter().any(|name| name == AGENT_NAME)
}

/// Whether this is an address of the node; IPv4 may come in the form that a socket of both families shows.
pub(super) fn has(&NodeAddresses { v4, v6 }: &NodeAddresses, address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => v4 == Some(address),
        IpAddr::V6(address) => v6 == Some(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes() -> BTreeMap<Arc<str>, NodeAddresses> {
        let addresses = |last| NodeAddresses {
            v4: Some([10, 0, 0, last].into()),
            v6: Some([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)].into()),
        };
        BTreeMap::from([("a".into(), addresses(1)), ("b".into(), addresses(2))])
    }

    fn ask(names: &[&str], from: &str, said: &str) -> Result<String, Stranger> {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        node_of(&names, from.parse().unwrap(), said, &nodes()).map(|node| node.to_string())
    }

    #[test]
    fn a_shared_certificate_speaks_for_the_node_whose_address_it_comes_from() {
        assert_eq!(ask(&["agent.bowline"], "10.0.0.1", "a"), Ok("a".to_owned()));
        assert_eq!(ask(&["agent.bowline"], "fd00::2", "b"), Ok("b".to_owned()));
        assert_eq!(
            ask(&["agent.bowline"], "::ffff:10.0.0.2", "b"),
            Ok("b".to_owned())
        );
        for from in ["10.0.0.2", "10.0.0.9", "fd00::2", "::ffff:10.0.0.2"] {
            assert_eq!(ask(&["agent.bowline"], from, "a"), Err(Stranger::Address));
        }
    }

    #[test]
    fn a_certificate_of_one_node_speaks_for_no_other() {
        assert_eq!(
            ask(&["a.agent.bowline"], "10.0.0.1", "a"),
            Ok("a".to_owned())
        );
        for names in [
            ["b.agent.bowline", "agent.bowline"],
            ["*.agent.bowline", "agent.bowline"],
        ] {
            assert_eq!(ask(&names, "10.0.0.1", "a"), Err(Stranger::OtherNode));
        }
    }

    #[test]
    fn only_agents_of_nodes_that_exist_are_taken() {
        assert_eq!(
            ask(&["agent.bowline"], "10.0.0.1", "c"),
            Err(Stranger::UnknownNode)
        );
        assert_eq!(
            ask(&["agent.bowline"], "10.0.0.1", ""),
            Err(Stranger::UnknownNode)
        );
        for name in ["manager.bowline", "agent.bowline.example", "xagent.bowline"] {
            assert_eq!(
                ask(&[name], "10.0.0.1", "a"),
                Err(Stranger::NoAgent),
                "{name}"
            );
        }
        assert_eq!(ask(&[], "10.0.0.1", "a"), Err(Stranger::NoAgent));
    }

    #[test]
    fn each_program_says_which_name_its_certificate_lacks() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let check = |role: Role, of: &[&str]| role.check_own(&names(of), "a");
        assert_eq!(check(Role::Agent, &["agent.bowline"]), Ok(()));
        assert_eq!(check(Role::Agent, &["a.agent.bowline"]), Ok(()));
        assert_eq!(
            check(Role::Agent, &["b.agent.bowline"]),
            Err("agent.bowline or a.agent.bowline".to_owned())
        );
        assert_eq!(check(Role::Manager, &["manager.bowline"]), Ok(()));
        assert_eq!(
            check(Role::Manager, &["agent.bowline"]),
            Err("manager.bowline".to_owned())
        );
    }
}
