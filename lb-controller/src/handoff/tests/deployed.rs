//! What is installed on Kubernetes fits to what programs listen at, read, and call each other.

use std::collections::BTreeMap;
use std::path::Path;

use k8s_openapi::api::core::v1::{Container, ContainerPort, PodTemplateSpec};
use serde::Deserialize;

use crate::handoff::HANDOFF_PORT;
use crate::handoff::peer::{AGENT_NAME, MANAGER_NAME};

fn file(name: &str) -> String {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize");
    std::fs::read_to_string(Path::new(directory).join(name)).unwrap()
}

/// A `DaemonSet` or a `Deployment`, as far as both have it.
#[derive(Deserialize)]
struct Workload {
    spec: WorkloadSpec,
}

#[derive(Deserialize)]
struct WorkloadSpec {
    template: PodTemplateSpec,
}

fn template(name: &str) -> PodTemplateSpec {
    let workload: Workload = serde_saphyr::from_str(&file(name)).unwrap();
    workload.spec.template
}

fn value_of<'a>(container: &'a Container, option: &str) -> &'a str {
    let args = container.args.as_ref().unwrap();
    let at = args.iter().position(|word| word == option).unwrap();
    &args[at + 1]
}

/// The Secret that is mounted where the program reads its certificates, and who may read its files.
fn secret(name: &str) -> (String, Option<bool>, Option<i32>) {
    let spec = template(name).spec.unwrap();
    let [container] = &spec.containers[..] else {
        panic!("one container");
    };
    let directory = value_of(container, "--handoff-certificates");
    let mut mounts = container.volume_mounts.iter().flatten();
    let mount = mounts
        .find(|mount| mount.mount_path == directory)
        .expect("it is mounted there");
    // A file or part of a Secret that is mounted by itself is never updated.
    assert_eq!((mount.read_only, &mount.sub_path), (Some(true), &None));
    let mut volumes = spec.volumes.into_iter().flatten();
    let volume = volumes.find(|volume| volume.name == mount.name).unwrap();
    let secret = volume.secret.expect("a Secret");
    (
        secret.secret_name.unwrap(),
        secret.optional,
        secret.default_mode,
    )
}

#[test]
fn certificates_are_optional_and_mounted_where_programs_read_them() {
    let owner = 0o400;
    // Its user is not root: the group of the mounted files is its own.
    let owner_and_group = 0o440;
    assert_eq!(
        secret("agent.yaml"),
        ("bowline-handoff-agent".to_owned(), Some(true), Some(owner))
    );
    assert_eq!(
        secret("manager.yaml"),
        (
            "bowline-handoff-manager".to_owned(),
            Some(true),
            Some(owner_and_group)
        )
    );
    let manager = template("manager.yaml").spec.unwrap();
    let manager = manager.security_context.unwrap();
    assert_eq!(
        (manager.run_as_user, manager.run_as_group, manager.fs_group),
        (Some(65532), Some(65532), Some(65532))
    );
}

#[test]
fn the_agents_ports_are_named_and_do_not_meet() {
    let spec = template("agent.yaml").spec.unwrap();
    let agent = &spec.containers[0];
    let port = |ContainerPort {
                    name,
                    container_port,
                    ..
                }: &ContainerPort| (name.clone().unwrap(), *container_port);
    let ports: BTreeMap<_, _> = agent.ports.iter().flatten().map(port).collect();
    let (_, metrics) = value_of(agent, "--metrics-listen")
        .rsplit_once(':')
        .unwrap();
    let metrics: i32 = metrics.parse().unwrap();
    let handoff = i32::from(HANDOFF_PORT);
    // Metrics are on all addresses of the node, and so would take the stream's port on each.
    assert_ne!(metrics, handoff);
    let expected = BTreeMap::from([
        ("handoff".to_owned(), handoff),
        ("metrics".to_owned(), metrics),
    ]);
    assert_eq!(ports, expected);
}

/// As far as we look at it: <https://cert-manager.io/docs/reference/api-docs/#cert-manager.io/v1.CertificateSpec>
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CertificateSpec {
    secret_name: String,
    #[serde(default, rename = "isCA")]
    is_ca: bool,
    #[serde(default)]
    dns_names: Vec<String>,
    #[serde(default)]
    usages: Vec<String>,
}

#[derive(Deserialize)]
struct Object {
    kind: String,
    spec: serde_json::Value,
}

#[test]
fn cert_manager_is_asked_for_the_names_that_programs_check() {
    let text = file("cert-manager.yaml");
    let objects = text.split("\n---\n").map(serde_saphyr::from_str::<Object>);
    let certificates: Vec<CertificateSpec> = objects
        .map(Result::unwrap)
        .filter(|object| object.kind == "Certificate")
        .map(|object| serde_json::from_value(object.spec).unwrap())
        .filter(|spec: &CertificateSpec| !spec.is_ca)
        .collect();
    let expected = [("agent.yaml", AGENT_NAME), ("manager.yaml", MANAGER_NAME)];
    let expected = expected.map(|(reader, name)| CertificateSpec {
        secret_name: secret(reader).0,
        is_ca: false,
        dns_names: vec![name.to_owned()],
        usages: ["digital signature", "server auth", "client auth"]
            .map(str::to_owned)
            .to_vec(),
    });
    assert_eq!(certificates, expected);
}
