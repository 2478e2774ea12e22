//! YAML in, `ServiceTable`s and statuses out, with the clock as an argument.

use std::collections::BTreeMap;
use std::fmt::Write;

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::api::service_table::ServiceTableSpec;

mod drains;
mod retirement;

/// A directory that only exists here, and its manager.
struct Bench {
    dir: tempfile::TempDir,
    core: Standalone,
    start: Instant,
}

/// Wall clock at the beginning.
const EPOCH: Timestamp = Timestamp::UNIX_EPOCH;

fn text(text: impl Into<String>) -> Content {
    Content::Text(text.into())
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::below(dir.path());
        outputs.create().unwrap();
        Self {
            core: Standalone::resume(outputs, &BTreeMap::new(), &BTreeMap::new()),
            dir,
            start: Instant::now(),
        }
    }

    fn outputs(&self) -> Outputs {
        Outputs::below(self.dir.path())
    }

    /// The same directory under a new manager that has not read it yet.
    fn restarted(self) -> Self {
        let read = |directory: PathBuf| -> BTreeMap<PathBuf, Content> {
            std::fs::read_dir(directory)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| (path.clone(), text(std::fs::read_to_string(path).unwrap())))
                .collect()
        };
        let outputs = self.outputs();
        let core = Standalone::resume(
            outputs.clone(),
            &read(outputs.tables()),
            &read(outputs.statuses()),
        );
        Self { core, ..self }
    }

    /// Takes files in and does what is due, `at` milliseconds after the start.
    fn at(&mut self, at: u64, files: &[(&str, Content)]) {
        let now = self.start + Duration::from_millis(at);
        self.core
            .take(files.iter().map(|(name, content)| (*name, content)), now);
        self.core.work(
            now,
            EPOCH + jiff::SignedDuration::from_millis(at.cast_signed()),
        );
    }

    fn table(&self, name: &str) -> Option<ServiceTableSpec> {
        let path = self.outputs().tables().join(format!("default_{name}.yaml"));
        let text = std::fs::read_to_string(path).ok()?;
        Some(serde_saphyr::from_str::<ServiceTable>(&text).unwrap().spec)
    }

    fn version(&self, name: &str) -> Option<u64> {
        self.table(name).map(|table| table.version)
    }

    fn status(&self, name: &str) -> ServiceStatus {
        let path = self
            .outputs()
            .statuses()
            .join(format!("default_{name}.yaml"));
        serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn sentences(&self) -> Vec<String> {
        self.core
            .problems(self.start)
            .into_iter()
            .map(|problem| format!("{}: {}", problem.object, problem.sentence))
            .collect()
    }
}

const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\nstatus: {addresses: [{type: InternalIP, address: 10.0.0.1}]}\n---\n";

fn service(name: &str, address: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, uid: uid-{name}, annotations: {{bowline.dev/addresses: \
         {address}}}}}\nspec: {{type: LoadBalancer, loadBalancerClass: bowline.dev/xdp, ports: [{{port: 80}}]}}\n---\n"
    )
}

fn pods(names: &[u32]) -> String {
    let mut text = String::new();
    for n in names {
        writeln!(text, "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}, uid: u{n}}}\nspec: {{nodeName: n1}}\n---").unwrap();
    }
    text
}

fn slice(service: &str, ready: &[u32]) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-1, labels: \
         {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints:\n"
    );
    for n in ready {
        writeln!(
            text,
            "- {{addresses: [10.1.0.{n}], nodeName: n1, conditions: {{ready: true}}, targetRef: {{kind: Pod, name: p{n}, \
             uid: u{n}}}}}"
        )
        .unwrap();
    }
    if ready.is_empty() {
        text = text.replace("endpoints:\n", "endpoints: []\n");
    }
    text
}

/// Pods by what they are in some slot: current, older.
fn occupants(table: &ServiceTableSpec) -> (BTreeSet<String>, BTreeSet<String>) {
    let group = &table.groups[0];
    let uid = |candidate: &u32| {
        table.pods[group.candidates[*candidate as usize] as usize]
            .uid
            .clone()
    };
    (
        group.current.iter().flatten().map(uid).collect(),
        group.older.iter().flatten().map(uid).collect(),
    )
}

fn uids(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn web() -> Vec<(&'static str, Content)> {
    vec![
        ("node.yaml", text(NODE)),
        ("web.yaml", text(service("web", "192.0.2.1"))),
        ("pods.yaml", text(pods(&[1, 2, 3]))),
        ("slice.yaml", text(slice("web", &[1, 2]))),
    ]
}

#[test]
fn a_service_gets_a_table_and_a_status_and_loses_both_with_its_file() {
    let mut bench = Bench::new();
    bench.at(0, &web());
    let table = bench.table("web").unwrap();
    assert_eq!(
        table.vips,
        ["192.0.2.1".parse::<std::net::IpAddr>().unwrap()]
    );
    assert_eq!(occupants(&table), (uids(&["u1", "u2"]), uids(&[])));
    let status = bench.status("web");
    assert_eq!(status.problems, Vec::<String>::new());
    assert!(
        status
            .conditions
            .iter()
            .all(|c| c.status == crate::api::file::ConditionStatus::True),
        "{status:?}"
    );
    assert_eq!(bench.sentences(), Vec::<String>::new());

    bench.at(5_000, &[("web.yaml", Content::Gone)]);
    assert_eq!(bench.table("web"), None);
    assert_eq!(
        std::fs::read_dir(bench.outputs().statuses())
            .unwrap()
            .count(),
        0
    );
    bench.at(
        9_000,
        &[
            ("node.yaml", Content::Gone),
            ("pods.yaml", Content::Gone),
            ("slice.yaml", Content::Gone),
        ],
    );
    assert!(bench.core.core.services.is_empty() && bench.core.core.named_by.is_empty());
}

#[test]
fn the_first_change_is_written_at_once_and_the_next_a_second_later() {
    let mut bench = Bench::new();
    bench.at(0, &web());
    let first = bench.version("web").unwrap();
    bench.at(5_000, &[("slice.yaml", text(slice("web", &[1, 3])))]);
    assert_eq!(bench.version("web"), Some(first + 1), "visible at once");
    bench.at(5_010, &[("slice.yaml", text(slice("web", &[2, 3])))]);
    bench.at(5_990, &[("slice.yaml", text(slice("web", &[1, 2])))]);
    assert_eq!(
        bench.version("web"),
        Some(first + 1),
        "at most one write a second"
    );
    let now = bench.start + Duration::from_millis(5_990);
    assert_eq!(
        bench.core.next_wake(now, EPOCH).unwrap() - now,
        Duration::from_millis(10)
    );
    bench.at(6_000, &[]);
    assert_eq!(bench.version("web"), Some(first + 2));
    assert_eq!(
        occupants(&bench.table("web").unwrap()).0,
        uids(&["u1", "u2"])
    );
}

#[test]
fn a_new_service_waits_a_moment_for_the_slices_of_its_selector() {
    let mut bench = Bench::new();
    let node_and_pods = format!("{NODE}{}", pods(&[1]));
    let selecting = |name: &str, address: &str| {
        service(name, address).replace("ports:", "selector: {app: a}, ports:")
    };
    bench.at(
        0,
        &[
            ("base.yaml", text(node_and_pods)),
            ("web.yaml", text(selecting("web", "192.0.2.1"))),
            ("empty.yaml", text(selecting("empty", "192.0.2.2"))),
            ("own.yaml", text(service("own", "192.0.2.3"))),
        ],
    );
    assert_eq!(bench.version("web"), None);
    assert_eq!(bench.version("own"), Some(1), "nobody writes slices for it");
    bench.at(60, &[("slice.yaml", text(slice("web", &[1])))]);
    assert_eq!(bench.version("web"), Some(1));
    assert_eq!(occupants(&bench.table("web").unwrap()).0, uids(&["u1"]));
    bench.at(499, &[]);
    assert_eq!(bench.version("empty"), None);
    bench.at(500, &[]);
    assert_eq!(bench.version("empty"), Some(1), "it refuses from now on");
}

#[test]
fn history_survives_a_restart_and_ends_with_the_pod() {
    let mut bench = Bench::new();
    bench.at(0, &web());
    bench.at(5_000, &[("slice.yaml", text(slice("web", &[2, 3])))]);
    let before = bench.table("web").unwrap();
    assert_eq!(occupants(&before), (uids(&["u2", "u3"]), uids(&["u1"])));

    let mut bench = bench.restarted();
    let mut files = web();
    files[3].1 = text(slice("web", &[2, 3]));
    bench.at(10_000, &files);
    bench.core.listed(bench.start + Duration::from_secs(10));
    bench.at(10_000, &[]);
    assert_eq!(
        bench.table("web").unwrap(),
        before,
        "nothing changed while it was away"
    );

    bench.at(15_000, &[("pods.yaml", text(pods(&[2, 3])))]);
    assert_eq!(
        occupants(&bench.table("web").unwrap()),
        (uids(&["u2", "u3"]), uids(&[]))
    );
}

#[test]
fn nobody_dies_while_a_file_has_never_been_understood() {
    let mut bench = Bench::new();
    bench.at(0, &web());
    bench.at(5_000, &[("slice.yaml", text(slice("web", &[2, 3])))]);
    let mut bench = bench.restarted();
    let mut files = web();
    files[2].1 = text("kind: [");
    files[3].1 = text(slice("web", &[2, 3]));
    bench.at(10_000, &files);
    bench.core.listed(bench.start + Duration::from_secs(10));
    bench.at(10_000, &[]);
    assert!(
        occupants(&bench.table("web").unwrap()).1.contains("u1"),
        "its Pod may be in the broken file"
    );
    bench.at(15_000, &[("pods.yaml", text(pods(&[2, 3])))]);
    assert_eq!(
        occupants(&bench.table("web").unwrap()),
        (uids(&["u2", "u3"]), uids(&[]))
    );
}

#[test]
fn a_broken_service_file_keeps_the_table_across_a_restart() {
    let mut bench = Bench::new();
    bench.at(0, &web());
    let before = bench.table("web").unwrap();
    let mut bench = bench.restarted();
    let mut files = web();
    files[1].1 = text("kind: Service\n  metadata: [");
    bench.at(5_000, &files);
    bench.core.listed(bench.start + Duration::from_secs(5));
    bench.at(5_000, &[]);
    assert_eq!(bench.table("web"), Some(before));
    assert!(
        bench.sentences()[0].starts_with("file web.yaml: line "),
        "{:?}",
        bench.sentences()
    );
    bench.at(9_000, &[("web.yaml", Content::Gone)]);
    assert_eq!(bench.table("web"), None, "now it is known to be gone");
}

#[test]
fn of_two_services_with_one_address_and_port_the_first_keeps_it_and_the_other_is_told() {
    let mut bench = Bench::new();
    bench.at(0, &web());
    let before = bench.table("web").unwrap();
    bench.at(5_000, &[("zeb.yaml", text(service("zeb", "192.0.2.1")))]);
    assert_eq!(bench.table("web").unwrap(), before);
    assert_eq!(bench.table("zeb"), None);
    let problem = &bench.status("zeb").problems[0];
    assert!(
        problem.contains("192.0.2.1 port 80/TCP belongs to Service default/web"),
        "{problem}"
    );
    bench.at(
        9_000,
        &[
            ("web.yaml", Content::Gone),
            ("slice.yaml", text(slice("zeb", &[1]))),
        ],
    );
    assert!(
        bench.table("zeb").is_some(),
        "it gets the address once that is free"
    );
    assert_eq!(bench.status("zeb").problems, Vec::<String>::new());
}

#[test]
fn bad_input_gives_a_sentence_and_leaves_the_others_working() {
    let cases: &[(&str, String, &str)] = &[
        ("no address", service("bad", "''"), "has no address"),
        (
            "not an address",
            service("bad", "nonsense"),
            "is not an IP address",
        ),
        (
            "a port twice",
            service("bad", "192.0.2.9")
                .replace("{port: 80}", "{name: a, port: 80}, {name: b, port: 80}"),
            "twice",
        ),
        (
            "a port out of range",
            service("bad", "192.0.2.9").replace("port: 80", "port: 80000"),
            "1 to 65535",
        ),
        (
            "no endpoints",
            service("bad", "192.0.2.9"),
            "no usable endpoint",
        ),
        (
            "the wrong family",
            service("bad", "2001:db8::9") + &slice("bad", &[1]),
            "",
        ),
        (
            "an unknown node",
            service("bad", "192.0.2.9") + &slice("bad", &[1]).replace("n1", "nowhere"),
            "nowhere",
        ),
        (
            "a weight out of range",
            service("bad", "192.0.2.9")
                + &slice("bad", &[9])
                + "---\n"
                + &pods(&[9]).replace(
                    "uid: u9",
                    "uid: u9, annotations: {bowline.dev/weight: '1000'}",
                ),
            "weight",
        ),
        (
            "a pod without a UID",
            service("bad", "192.0.2.9") + &slice("bad", &[1]).replace(", uid: u1", ""),
            "uid",
        ),
    ];
    for (what, yaml, expected) in cases {
        let mut bench = Bench::new();
        bench.at(0, &web());
        let before = bench.table("web").unwrap();
        bench.at(5_000, &[("bad.yaml", text(yaml.clone()))]);
        assert_eq!(bench.table("web").as_ref(), Some(&before), "{what}");
        let sentences = bench.sentences().join("\n");
        assert!(sentences.contains(expected), "{what}: {sentences:?}");
        assert!(
            sentences.is_empty() || sentences.contains("bad"),
            "{what}: names the object: {sentences}"
        );
        bench.at(9_000, &[("bad.yaml", Content::Gone)]);
        assert_eq!(bench.sentences(), Vec::<String>::new(), "{what}");
        assert_eq!(bench.table("bad"), None, "{what}");
    }
}

#[test]
fn five_thousand_endpoints_get_a_slot_each() {
    let mut bench = Bench::new();
    let mut text_of = String::new();
    writeln!(
        text_of,
        "{}apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: big-1, labels: \
         {{kubernetes.io/service-name: big}}}}\naddressType: IPv4\nports: [{{port: 8080}}]\nendpoints:",
        service("big", "192.0.2.5")
    )
    .unwrap();
    let mut pods = String::new();
    for n in 0..5_000 {
        writeln!(
            text_of,
            "- {{addresses: [10.{}.{}.{}], nodeName: n1, targetRef: {{kind: Pod, name: p{n}, uid: u{n}}}}}",
            2 + n / 62_500,
            n / 250,
            n % 250
        )
        .unwrap();
        writeln!(pods, "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{n}, uid: u{n}}}\nspec: {{nodeName: n1}}\n---").unwrap();
    }
    bench.at(
        0,
        &[
            ("node.yaml", text(NODE)),
            ("pods.yaml", text(pods)),
            ("big.yaml", text(text_of)),
        ],
    );
    let table = bench.table("big").unwrap();
    assert_eq!(table.groups[0].current.len(), 5_000);
    assert_eq!(bench.sentences(), Vec::<String>::new());
}

#[test]
fn a_table_on_disk_that_is_no_good_is_said_and_written_anew() {
    let mut bench = Bench::new();
    bench.at(0, &web());
    let path = bench.outputs().tables().join("default_web.yaml");
    std::fs::write(&path, "spec: {").unwrap();
    let mut bench = bench.restarted();
    bench.at(5_000, &web());
    assert!(bench.table("web").is_some());
    assert!(
        bench.sentences()[0].contains("default_web.yaml"),
        "{:?}",
        bench.sentences()
    );
}

#[test]
fn a_service_of_another_class_or_type_is_not_touched() {
    let mut bench = Bench::new();
    for yaml in [
        service("other", "192.0.2.7").replace("bowline.dev/xdp", "example.com/other"),
        service("other", "192.0.2.7").replace("LoadBalancer,", "ClusterIP,"),
    ] {
        bench.at(0, &[("other.yaml", text(yaml))]);
        assert_eq!(
            std::fs::read_dir(bench.outputs().statuses())
                .unwrap()
                .count(),
            0
        );
        assert_eq!(bench.table("other"), None);
        assert_eq!(bench.sentences(), Vec::<String>::new());
    }
}
