//! Drains of a directory: what a manager that starts goes on with, and when it lets go of one.

use super::*;
use crate::api::node_drain::Phase;

const WISH: &str =
    "apiVersion: bowline.dev/v1alpha1\nkind: NodeDrain\nmetadata: {name: n1, uid: d1}\nspec: {}\n";
const WISH_FILE: &str = "nodedrain-n1.yaml";

impl Bench {
    /// Under a manager that goes on from a drain that stands there.
    fn resumed(phase: Phase) -> Self {
        let mut bench = Self::new();
        let path = bench.outputs().drains().join("n1.yaml");
        let told = format!("{WISH}status: {{phase: {phase:?}, since: 1970-01-01T00:00:00Z}}\n");
        std::fs::write(&path, &told).unwrap();
        bench
            .core
            .resume_drains(&BTreeMap::from([(path, text(told))]), 1);
        bench
    }

    fn drain(&self) -> Option<NodeDrain> {
        let path = self.outputs().drains().join("n1.yaml");
        let text = std::fs::read_to_string(path).ok()?;
        Some(serde_saphyr::from_str(&text).unwrap())
    }
}

#[test]
fn a_drain_goes_on_where_the_last_manager_left_it_and_ends_with_its_wish() {
    let mut bench = Bench::resumed(Phase::Drained);
    bench.at(0, &[(WISH_FILE, text(WISH))]);
    assert_eq!(bench.drain().unwrap().status.unwrap().phase, Phase::Drained);
    bench.at(100, &[(WISH_FILE, Content::Gone)]);
    assert_eq!(bench.drain(), None);
}

#[test]
fn a_wish_that_can_not_be_understood_does_not_put_a_node_to_use_again() {
    let mut bench = Bench::resumed(Phase::Drained);
    bench.at(0, &[(WISH_FILE, text("apiVersion: [\n"))]);
    assert!(bench.drain().is_some());
    bench.at(100, &[(WISH_FILE, text(WISH.replace("d1", "d2")))]);
    let anew = bench.drain().unwrap();
    assert_eq!(anew.metadata.uid.as_deref(), Some("d2"));
    assert_ne!(
        anew.status.unwrap().phase,
        Phase::Drained,
        "it is another one"
    );
}

#[test]
fn without_certificates_a_wish_is_refused_in_its_status() {
    let mut bench = Bench::new();
    bench.at(0, &[(WISH_FILE, text(WISH))]);
    let status = bench.drain().unwrap().status.unwrap();
    assert_eq!(status.phase, Phase::Failed);
    assert!(
        status
            .log
            .last()
            .unwrap()
            .message
            .contains("--handoff-certificates")
    );
}
