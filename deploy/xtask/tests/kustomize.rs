//! What `kubectl apply -k deploy/kustomize` and the patch that uninstalls do, on a real API server.

use std::path::PathBuf;

use rig::ControlPlane;
use serde_json::{Value, json};

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

/// Runs kubectl, which must succeed, and gives what it prints.
fn kubectl(plane: &ControlPlane, words: &[&str]) -> String {
    let output = plane.kubectl().unwrap().args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The agents' `DaemonSet`, in Bowline's namespace.
fn agents(plane: &ControlPlane, verb: &[&str], words: &[&str]) -> String {
    let object = [
        "--namespace",
        "bowline-system",
        "daemonset",
        "bowline-agent",
    ];
    kubectl(plane, &[verb, &object, words].concat())
}

#[tokio::test]
async fn uninstalling_changes_what_agents_do_and_nothing_of_what_they_may() {
    let plane = ControlPlane::start().await.unwrap();
    let kustomize = deploy().join("kustomize");
    let directory = kustomize.display().to_string();
    let patch = kustomize.join("uninstall.yaml").display().to_string();
    let spec = || -> Value {
        let text = agents(&plane, &["get"], &["--output", "json"]);
        serde_json::from_str::<Value>(&text).unwrap()["spec"].take()
    };
    // Whoever owns the fields, and whatever somebody has changed since.
    for how in [
        &["apply"][..],
        &["apply", "--server-side", "--force-conflicts"],
    ] {
        kubectl(&plane, &[how, &["-k", &directory]].concat());
        let own = json!({ "spec": { "template": { "spec": {
            "nodeSelector": { "rack": "one" },
            "imagePullSecrets": [{ "name": "ours" }],
            "containers": [{ "name": "agent", "image": "registry.example/bowline:1" }],
        } } } });
        agents(&plane, &["patch"], &["--patch", &own.to_string()]);
        let mut expected = spec();
        agents(&plane, &["patch"], &["--patch-file", &patch]);

        expected["updateStrategy"]["rollingUpdate"]["maxUnavailable"] = json!("100%");
        let pod = &mut expected["template"]["spec"];
        pod["nodeSelector"] = json!({ "kubernetes.io/os": "linux" });
        pod["automountServiceAccountToken"] = json!(false);
        let agent = &mut pod["containers"][0];
        assert_eq!(agent["image"], "registry.example/bowline:1");
        agent["args"] = json!(["detach", "--stay"]);
        let probes = agent.as_object_mut().unwrap();
        probes.remove("livenessProbe").unwrap();
        let ready = probes["readinessProbe"].as_object_mut().unwrap();
        ready.remove("httpGet").unwrap();
        let check = json!(["/usr/bin/lb-controller", "detach", "--check"]);
        ready.insert("exec".to_owned(), json!({ "command": check }));
        ready.insert("timeoutSeconds".to_owned(), json!(5));
        assert_eq!(spec(), expected, "{how:?}");
        agents(&plane, &["delete"], &[]);
    }
}
