//! What is told about advertisements and peers: whether what each names exists. Pure. A wrong one never stops the others.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};

use super::conditions::{Holds, Said, condition};
use super::statuses::Change;
use crate::admin::Problem;
use crate::announce::fault::{Fault, bgp_faults, faults, peer_faults};
use crate::api::bgp_advertisement::{BGPAdvertisement, BGPAdvertisementStatus};
use crate::api::bgp_peer::{BGPPeer, BGPPeerStatus};
use crate::api::l2_advertisement::{L2Advertisement, L2AdvertisementStatus, condition as kind};
use crate::source::index::Index;
use crate::source::parse::Kind;

/// Statuses that differ from what is there, by kind.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) l2: Vec<Change>,
    pub(super) bgp: Vec<Change>,
    pub(super) peers: Vec<Change>,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        let Self { l2, bgp, peers } = self;
        l2.is_empty() && bgp.is_empty() && peers.is_empty()
    }
}

/// An object whose status is one condition.
trait Told {
    const KIND: Kind;
    type Status: serde::Serialize + PartialEq;

    fn meta(&self) -> &ObjectMeta;
    fn there(&self) -> Option<&Self::Status>;
    fn conditions(status: &Self::Status) -> &[Condition];
    fn status(conditions: Vec<Condition>) -> Self::Status;
    fn faults(&self, index: &Index) -> Vec<Fault>;
}

macro_rules! told {
    ($($t:ident $status:ident $faults:ident),*) => { $(
        impl Told for $t {
            const KIND: Kind = Kind::$t;
            type Status = $status;

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn there(&self) -> Option<&$status> {
                self.status.as_ref()
            }
            fn conditions(status: &$status) -> &[Condition] {
                &status.conditions
            }
            fn status(conditions: Vec<Condition>) -> $status {
                $status { conditions }
            }
            fn faults(&self, index: &Index) -> Vec<Fault> {
                $faults(index, self)
            }
        }
    )* };
}
told!(
    L2Advertisement L2AdvertisementStatus faults,
    BGPAdvertisement BGPAdvertisementStatus bgp_faults,
    BGPPeer BGPPeerStatus peer_faults
);

/// Statuses that differ from what is there.
pub(super) fn changes(index: &Index, wall: Timestamp) -> Changes {
    Changes {
        l2: of(index, index.advertisements(), wall),
        bgp: of(index, index.bgp_advertisements(), wall),
        peers: of(index, index.bgp_peers(), wall),
    }
}

fn of<'a, T: Told + 'a>(
    index: &Index,
    objects: impl Iterator<Item = &'a T>,
    wall: Timestamp,
) -> Vec<Change> {
    let changes = objects.filter_map(|object| {
        let wanted = status(index, object, wall);
        Change::from(object.meta(), object.there(), &wanted)
    });
    changes.collect()
}

/// What is wrong with advertisements and peers.
pub(super) fn problems(index: &Index) -> impl Iterator<Item = Problem> {
    let l2 = index.advertisements().flat_map(|one| wrong(index, one));
    let bgp = index.bgp_advertisements().flat_map(|one| wrong(index, one));
    let peers = index.bgp_peers().flat_map(|one| wrong(index, one));
    l2.chain(bgp).chain(peers)
}

fn wrong<T: Told>(index: &Index, object: &T) -> Vec<Problem> {
    let name = object.meta().name.as_deref().unwrap_or_default();
    let faults = object.faults(index).into_iter();
    let problems = faults.map(|fault| Problem {
        object: format!("{:?} {name}", T::KIND),
        sentence: fault.to_string(),
    });
    problems.collect()
}

fn status<T: Told>(index: &Index, object: &T, wall: Timestamp) -> T::Status {
    let faults = object.faults(index);
    // The gravest gives the reason; the message has all.
    let ready = match faults.first() {
        None => Said {
            kind: kind::READY,
            holds: Holds::Yes,
            reason: "AllFound",
            message: "what it names exists".to_owned(),
        },
        Some(fault) => {
            let sentences: Vec<_> = faults.iter().map(ToString::to_string).collect();
            Said {
                kind: kind::READY,
                holds: Holds::No,
                reason: fault.reason(),
                message: sentences.join(". "),
            }
        }
    };
    let before = object.there().map_or(&[][..], T::conditions);
    let generation = object.meta().generation;
    T::status(vec![condition(ready, before, generation, wall)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse::{Kind, Object, ObjectKey};

    fn apply(index: &mut Index, object: Object, kind: Kind, name: &str) {
        let key = ObjectKey {
            kind,
            namespace: String::new(),
            name: name.to_owned(),
        };
        index.apply(key, object);
    }

    fn advertise(index: &mut Index, yaml: &str) {
        let object: L2Advertisement = serde_saphyr::from_str(yaml).unwrap();
        let name = object.metadata.name.clone().unwrap();
        let object = Object::L2Advertisement(Box::new(object));
        apply(index, object, Kind::L2Advertisement, &name);
    }

    /// One node that can announce.
    fn cluster() -> Index {
        let mut index = Index::default();
        let node = serde_saphyr::from_str("metadata: {name: n1}").unwrap();
        apply(&mut index, Object::Node(Box::new(node)), Kind::Node, "n1");
        let balancer = serde_saphyr::from_str(
            "{apiVersion: bowline.dev/v1alpha1, kind: LoadBalancerNode, metadata: {name: n1}, spec: {role: both, \
             version: '1', interfaces: [{name: eth0, xdp: native}]}}",
        )
        .unwrap();
        let balancer = Object::LoadBalancerNode(Box::new(balancer));
        apply(&mut index, balancer, Kind::LoadBalancerNode, "n1");
        index
    }

    const KIND: &str = "apiVersion: bowline.dev/v1alpha1\nkind: L2Advertisement\n";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_wrong_one_says_what_to_do_and_the_others_are_ready() {
        let mut index = cluster();
        advertise(
            &mut index,
            &format!("{KIND}metadata: {{name: good}}\nspec: {{}}"),
        );
        advertise(
            &mut index,
            &format!(
                "{KIND}metadata: {{name: wrong, generation: 3}}\nspec: {{pools: [shop], interfaces: [eth7]}}"
            ),
        );
        let said: Vec<_> = index
            .advertisements()
            .map(|advertisement| {
                let status = status(&index, advertisement, at(7));
                let ready = status.conditions[0].clone();
                (ready.status, ready.reason, ready.observed_generation)
            })
            .collect();
        assert_eq!(
            said,
            [
                ("True".to_owned(), "AllFound".to_owned(), None),
                ("False".to_owned(), "PoolNotFound".to_owned(), Some(3)),
            ]
        );
        let problems: Vec<_> = problems(&index).map(|problem| problem.object).collect();
        assert_eq!(problems, ["L2Advertisement wrong"; 2]);
    }

    #[test]
    fn peers_and_advertisements_by_bgp_are_told_of_too() {
        let mut index = cluster();
        let spec = serde_saphyr::from_str("{peers: [rack]}").unwrap();
        let advertisement = Object::BGPAdvertisement(Box::new(BGPAdvertisement::new("all", spec)));
        apply(&mut index, advertisement, Kind::BGPAdvertisement, "all");
        let said = |index: &Index| {
            let all: Vec<_> = index.bgp_advertisements().collect();
            let status = status(index, all[0], at(7));
            status.conditions[0].reason.clone()
        };
        assert_eq!(said(&index), "PeerNotFound");
        let spec = "{peerAddress: 192.0.2.1, peerASN: 64500, myASN: 64501, nodeSelector: {matchLabels: {rack: one}}}";
        let peer = BGPPeer::new("rack", serde_saphyr::from_str(spec).unwrap());
        apply(
            &mut index,
            Object::BGPPeer(Box::new(peer)),
            Kind::BGPPeer,
            "rack",
        );
        assert_eq!(said(&index), "AllFound");
        let problems: Vec<_> = problems(&index).collect();
        let [Problem { object, sentence }] = &problems[..] else {
            panic!("{problems:?}");
        };
        assert_eq!(object, "BGPPeer rack");
        assert!(
            sentence.contains("nodeSelector matches no Node"),
            "{sentence}"
        );
    }

    #[test]
    fn what_is_written_is_not_written_again() {
        let mut index = cluster();
        let yaml =
            format!("{KIND}metadata: {{name: all, uid: u, resourceVersion: '5'}}\nspec: {{}}");
        advertise(&mut index, &yaml);
        let [change] = &changes(&index, at(7)).l2[..] else {
            panic!("one change");
        };
        assert_eq!(change.name, "all");
        assert_eq!(
            change.patch["metadata"],
            serde_json::json!({ "uid": "u", "resourceVersion": "5" })
        );
        let mut written: L2Advertisement = serde_saphyr::from_str(&yaml).unwrap();
        written.status = serde_json::from_value(change.patch["status"].clone()).unwrap();
        let written = Object::L2Advertisement(Box::new(written));
        apply(&mut index, written, Kind::L2Advertisement, "all");
        assert!(changes(&index, at(99)).is_empty());
    }
}
