//! What is told about advertisements: whether what each names exists. Pure. A wrong one never stops the others.

use jiff::Timestamp;

use super::conditions::{Holds, Said, condition};
use super::statuses::Change;
use crate::admin::Problem;
use crate::announce::fault::faults;
use crate::api::l2_advertisement::{L2Advertisement, L2AdvertisementStatus, condition as kind};
use crate::source::index::Index;

/// Statuses that differ from what is there.
pub(super) fn changes(index: &Index, wall: Timestamp) -> Vec<Change> {
    let advertisements = index.advertisements().filter_map(|advertisement| {
        let wanted = status(index, advertisement, wall);
        let there = advertisement.status.as_ref();
        Change::from(&advertisement.metadata, there, &wanted)
    });
    advertisements.collect()
}

/// What is wrong with advertisements.
pub(super) fn problems(index: &Index) -> impl Iterator<Item = Problem> {
    index.advertisements().flat_map(move |advertisement| {
        let name = advertisement.metadata.name.as_deref().unwrap_or_default();
        let object = format!("L2Advertisement {name}");
        faults(index, advertisement)
            .into_iter()
            .map(move |fault| Problem {
                object: object.clone(),
                sentence: fault.to_string(),
            })
    })
}

fn status(
    index: &Index,
    advertisement: &L2Advertisement,
    wall: Timestamp,
) -> L2AdvertisementStatus {
    let faults = faults(index, advertisement);
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
    let before = advertisement.status.iter();
    let before: Vec<_> = before
        .flat_map(|status| status.conditions.clone())
        .collect();
    let generation = advertisement.metadata.generation;
    L2AdvertisementStatus {
        conditions: vec![condition(ready, &before, generation, wall)],
    }
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
    fn what_is_written_is_not_written_again() {
        let mut index = cluster();
        let yaml =
            format!("{KIND}metadata: {{name: all, uid: u, resourceVersion: '5'}}\nspec: {{}}");
        advertise(&mut index, &yaml);
        let [change] = &changes(&index, at(7))[..] else {
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
        assert_eq!(changes(&index, at(99)), []);
    }
}
