//! Routes to VIPs for routing daemons: which this node has in a routing table of its own, and the difference to what is there. Pure.
//!
//! Nothing looks packets up in that table. A daemon beside the agent exports it, BIRD for instance:
//!
//! ```text
//! protocol kernel { kernel table 6081; learn; ipv4 { import all; export none; }; }
//! ```

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::api::node_drain::{NodeDrain, Phase};

/// The table if nothing else is said: the port of our encapsulation, which no distribution uses as a table.
pub const TABLE_DEFAULT: u32 = 6081;
/// Who has made a route (`rtm_protocol`): not one of those that `rt_protos` of iproute2 names.
pub const PROTOCOL: u8 = 181;
/// Metric of a route that is to be chosen …
pub const METRIC: u32 = 100;
/// … and of one that is to be the last choice: export it with `GRACEFUL_SHUTDOWN` (RFC 8326) and a low preference.
pub const METRIC_LAST: u32 = 1000;

/// Routes by prefix, each with its metric.
pub type Routes = BTreeMap<IpNet, u32>;

/// How far a node is to be chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Preference {
    /// Like any other.
    #[default]
    Full,
    /// When there is no other.
    Last,
    /// Not at all.
    None,
}

impl Preference {
    /// Of a node that has this drain.
    pub fn of(drain: Option<&NodeDrain>) -> Self {
        let phase = drain.and_then(|drain| Some(drain.status.as_ref()?.phase));
        match phase {
            Some(Phase::Deprefer) => Self::Last,
            Some(Phase::Withdraw | Phase::Quiesce | Phase::Drained) => Self::None,
            Some(Phase::Preflight | Phase::Exclude | Phase::HandOff | Phase::Failed) | None => {
                Self::Full
            }
        }
    }
}

/// The routes of a node that announces prefixes.
pub fn wanted(prefixes: impl IntoIterator<Item = IpNet>, preference: Preference) -> Routes {
    let metric = match preference {
        Preference::Full => METRIC,
        Preference::Last => METRIC_LAST,
        Preference::None => return Routes::new(),
    };
    let prefixes = prefixes.into_iter();
    prefixes.map(|prefix| (prefix, metric)).collect()
}

/// What brings a table in line.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Difference {
    /// Comes first: a prefix whose metric changes is never without a route.
    pub add: Vec<(IpNet, u32)>,
    /// What is not wanted (any more).
    pub remove: Vec<(IpNet, u32)>,
}

/// From the routes that a table holds, of which one prefix may have several, to those that it should.
pub fn difference(held: &[(IpNet, u32)], wanted: &Routes) -> Difference {
    let is_wanted = |route: &(IpNet, u32)| wanted.get(&route.0) == Some(&route.1);
    let add = wanted.iter().map(|(prefix, metric)| (*prefix, *metric));
    Difference {
        add: add.filter(|route| !held.contains(route)).collect(),
        remove: held
            .iter()
            .filter(|route| !is_wanted(route))
            .copied()
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::node_drain::{NodeDrainSpec, NodeDrainStatus};

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn in_phase(phase: Phase) -> NodeDrain {
        let mut drain = NodeDrain::new("n", NodeDrainSpec::default());
        drain.status = Some(NodeDrainStatus {
            phase,
            ..NodeDrainStatus::default()
        });
        drain
    }

    #[test]
    fn a_drain_makes_routes_the_last_choice_and_then_withdraws_them() {
        let of = |phase| Preference::of(Some(&in_phase(phase)));
        assert_eq!(Preference::of(None), Preference::Full);
        assert_eq!(of(Phase::HandOff), Preference::Full);
        assert_eq!(of(Phase::Deprefer), Preference::Last);
        for phase in [Phase::Withdraw, Phase::Quiesce, Phase::Drained] {
            assert_eq!(of(phase), Preference::None);
        }
        assert_eq!(of(Phase::Failed), Preference::Full);
    }

    #[test]
    fn prefixes_become_routes_of_a_metric_that_says_how_far_the_node_is_to_be_chosen() {
        let vips = [net("198.51.100.1/32"), net("2001:db8::1/128")];
        let full = Routes::from([
            (net("198.51.100.1/32"), METRIC),
            (net("2001:db8::1/128"), METRIC),
        ]);
        assert_eq!(wanted(vips, Preference::Full), full);
        assert_eq!(wanted(vips, Preference::None), Routes::new());
        assert!(
            wanted(vips, Preference::Last)
                .values()
                .all(|metric| *metric == METRIC_LAST)
        );
    }

    #[test]
    fn the_difference_adds_before_it_removes_and_leaves_the_rest() {
        let held = [
            (net("198.51.100.1/32"), METRIC),
            (net("198.51.100.2/32"), METRIC),
            (net("198.51.100.3/32"), METRIC),
        ];
        let wanted = Routes::from([
            (net("198.51.100.1/32"), METRIC),
            (net("198.51.100.2/32"), METRIC_LAST),
            (net("198.51.100.4/32"), METRIC_LAST),
        ]);
        let difference = difference(&held, &wanted);
        assert_eq!(
            difference.add,
            [
                (net("198.51.100.2/32"), METRIC_LAST),
                (net("198.51.100.4/32"), METRIC_LAST)
            ]
        );
        assert_eq!(
            difference.remove,
            [
                (net("198.51.100.2/32"), METRIC),
                (net("198.51.100.3/32"), METRIC)
            ]
        );
        assert_eq!(
            super::difference(&[], &Routes::new()),
            Difference::default()
        );
    }
}
