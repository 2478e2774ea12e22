//! Drains that a Node itself asks for, by a label, a taint or the end of its kubelet. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Node;

use crate::announce::facts;
use crate::api::node_drain::{NodeDrain, NodeDrainSpec, Trigger};
use crate::source::index::Index;
use crate::source::kubelet::tells_shutdown;

/// The autoscaler's taint on a Node that it is about to delete.
const AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// What Nodes ask for and take back.
#[derive(Clone, PartialEq, Debug, Default)]
pub(in crate::manager) struct Asked {
    /// Drains to be made.
    pub(in crate::manager) anew: Vec<NodeDrain>,
    /// Drains whose reason is gone: name and UID.
    pub(in crate::manager) over: Vec<(String, String)>,
}

impl Asked {
    pub(in crate::manager) fn is_empty(&self) -> bool {
        let Self { anew, over } = self;
        anew.is_empty() && over.is_empty()
    }
}

/// What is to be asked for. Somebody's own drain is never touched, and a drain lasts while any of the reasons that are heeded does:
/// one that has failed is not asked for again before its reason was gone.
pub(in crate::manager) fn asked(index: &Index, heeded: &BTreeSet<Trigger>) -> Asked {
    let mut asked = Asked::default();
    if heeded.is_empty() {
        return asked;
    }
    for balancer in index.balancers() {
        let name = balancer.metadata.name.as_deref().unwrap_or_default();
        let Some(node) = index.node(name) else {
            continue;
        };
        if index.drain(name).is_none()
            && let Some(trigger) = heeded.iter().find(|trigger| holds(node, **trigger))
        {
            asked.anew.push(drain(name, *trigger));
        }
    }
    for drain in index.drains() {
        let meta = &drain.metadata;
        let (Some(name), Some(uid)) = (&meta.name, &meta.uid) else {
            continue;
        };
        // Of a trigger that nobody heeds any more too.
        let lasts = |node| heeded.iter().any(|trigger| holds(node, *trigger));
        if drain.spec.trigger != Trigger::Command && !index.node(name).is_some_and(lasts) {
            asked.over.push((name.clone(), uid.clone()));
        }
    }
    asked
}

fn drain(node: &str, trigger: Trigger) -> NodeDrain {
    let spec = NodeDrainSpec {
        trigger,
        requested_by: Some("bowline-manager".to_owned()),
        ..NodeDrainSpec::default()
    };
    NodeDrain::new(node, spec)
}

fn holds(node: &Node, trigger: Trigger) -> bool {
    match trigger {
        Trigger::Command => false,
        Trigger::ExcludeLabel => facts::is_excluded(node),
        Trigger::AutoscalerTaint => {
            let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
            taints
                .into_iter()
                .flatten()
                .any(|taint| taint.key == AUTOSCALER_TAINT)
        }
        Trigger::Shutdown => {
            let status = node.status.as_ref();
            let conditions = status.and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().any(tells_shutdown)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::load_balancer_node::{LoadBalancerNode, LoadBalancerNodeSpec, NodeRole};
    use crate::source::parse::{Kind, Object, ObjectKey};

    const ALL: [Trigger; 3] = [
        Trigger::ExcludeLabel,
        Trigger::AutoscalerTaint,
        Trigger::Shutdown,
    ];

    /// A cluster of one node that has an agent.
    struct World(Index);

    impl World {
        fn new(node: &str) -> Self {
            let mut world = Self(Index::default());
            let spec = LoadBalancerNodeSpec {
                role: NodeRole::Both,
                version: "1".to_owned(),
                addresses: Vec::new(),
                interfaces: Vec::new(),
            };
            let balancer = LoadBalancerNode::new("a", spec);
            world.apply(
                Kind::LoadBalancerNode,
                Object::LoadBalancerNode(Box::new(balancer)),
            );
            world.node(node);
            world
        }

        fn apply(&mut self, kind: Kind, object: Object) {
            self.0.apply(key(kind), object);
        }

        fn node(&mut self, rest: &str) {
            let yaml = format!("{{metadata: {{name: a, uid: n}}, {rest}}}");
            let node: Node = serde_saphyr::from_str(&yaml).unwrap();
            self.apply(Kind::Node, Object::Node(Box::new(node)));
        }

        fn drain(&mut self, mut drain: NodeDrain) {
            drain.metadata.uid = Some("d".to_owned());
            self.apply(Kind::NodeDrain, Object::NodeDrain(Box::new(drain)));
        }

        fn asked(&self, heeded: &[Trigger]) -> Asked {
            asked(&self.0, &heeded.iter().copied().collect())
        }
    }

    fn key(kind: Kind) -> ObjectKey {
        ObjectKey {
            kind,
            namespace: String::new(),
            name: "a".to_owned(),
        }
    }

    const LABEL: &str = "metadata: {name: a, uid: n, labels: {node.kubernetes.io/exclude-from-external-load-balancers: ''}}";
    const TAINT: &str =
        "spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}";
    const SHUTDOWN: &str = "status: {conditions: [{type: Ready, status: 'False', reason: KubeletNotReady, message: 'node is shutting down'}]}";

    fn node_of(trigger: Trigger) -> World {
        let mut world = World::new("");
        match trigger {
            Trigger::Command => {}
            Trigger::ExcludeLabel => {
                let node: Node = serde_saphyr::from_str(&format!("{{{LABEL}}}")).unwrap();
                world.apply(Kind::Node, Object::Node(Box::new(node)));
            }
            Trigger::AutoscalerTaint => world.node(TAINT),
            Trigger::Shutdown => world.node(SHUTDOWN),
        }
        world
    }

    #[test]
    fn each_trigger_is_heeded_if_it_is_to_be_and_its_drain_ends_with_it() {
        for trigger in ALL {
            let mut world = node_of(trigger);
            let others: Vec<_> = ALL.into_iter().filter(|other| *other != trigger).collect();
            assert_eq!(world.asked(&[]), Asked::default());
            assert_eq!(world.asked(&others), Asked::default(), "{trigger:?}");
            let Asked { anew, over } = world.asked(&ALL);
            assert_eq!((anew.len(), over.len()), (1, 0), "{trigger:?}");
            assert_eq!(anew[0].spec.trigger, trigger);
            world.drain(anew[0].clone());
            assert_eq!(world.asked(&ALL), Asked::default(), "it lasts");
            world.node("");
            let taken_back = [("a".to_owned(), "d".to_owned())];
            assert_eq!(world.asked(&ALL).over, taken_back, "{trigger:?}");
            world.0.delete(&key(Kind::Node));
            assert_eq!(world.asked(&ALL).over, taken_back, "the Node is gone");
        }
    }

    #[test]
    fn somebodys_own_drain_is_not_touched() {
        let mut world = node_of(Trigger::Shutdown);
        world.drain(NodeDrain::new("a", NodeDrainSpec::default()));
        assert_eq!(world.asked(&ALL), Asked::default());
        world.node("");
        assert_eq!(world.asked(&ALL), Asked::default());
    }

    #[test]
    fn a_node_that_is_not_ready_for_another_reason_is_not_drained() {
        let world = World::new(
            "status: {conditions: [{type: Ready, status: Unknown, message: Kubelet stopped posting node status.}]}",
        );
        assert_eq!(world.asked(&ALL), Asked::default());
        let mut world = World::new(TAINT);
        world.0.delete(&key(Kind::LoadBalancerNode));
        assert_eq!(world.asked(&ALL), Asked::default(), "it has no agent");
    }
}
