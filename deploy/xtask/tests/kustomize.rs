//! What `kubectl apply -k deploy/kustomize` does, on a real API server.

use std::path::PathBuf;

use rig::ControlPlane;

fn deploy() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[tokio::test]
async fn everything_applies_and_a_second_time_changes_nothing() {
    let plane = ControlPlane::start().await.unwrap();
    let apply = |option: &str, path: PathBuf| {
        let mut kubectl = plane.kubectl().unwrap();
        let output = kubectl
            .args(["apply", "--validate=strict", option])
            .arg(path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        said
    };
    apply("-k", deploy().join("kustomize"));
    let again = apply("-k", deploy().join("kustomize"));
    assert!(
        again.lines().all(|line| line.ends_with("unchanged")),
        "{again}"
    );
    // The server serves new kinds a moment after it has accepted their definitions.
    let established = plane
        .kubectl()
        .unwrap()
        .args([
            "wait",
            "crd",
            "--all",
            "--for=condition=Established",
            "--timeout=30s",
        ])
        .status();
    assert!(established.unwrap().success());
    apply("-f", deploy().join("examples/addresses.yaml"));
}
