use std::collections::{HashMap, HashSet};

use super::*;

/// Pods and nodes as a test names them.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) pods: HashMap<String, Pod>,
    pub(crate) nodes: HashSet<String>,
    pub(crate) incomplete: bool,
    pub(crate) leaving: HashSet<String>,
}

impl Known {
    pub(crate) fn new(uids: &[&str], nodes: &[&str]) -> Self {
        let pod = |uid: &&str| {
            let yaml = format!("metadata: {{name: {uid}, namespace: shop, uid: {uid}}}");
            ((*uid).to_owned(), serde_saphyr::from_str(&yaml).unwrap())
        };
        Self {
            pods: uids.iter().map(pod).collect(),
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            incomplete: false,
            leaving: HashSet::new(),
        }
    }
}

impl Cluster for Known {
    fn pod(&self, uid: &str) -> Option<&Pod> {
        self.pods.get(uid)
    }
    fn has_node(&self, name: &str) -> bool {
        self.nodes.contains(name)
    }
    fn is_leaving(&self, node: &str) -> bool {
        self.leaving.contains(node)
    }
    fn is_complete(&self) -> bool {
        !self.incomplete
    }
}

pub(crate) fn service(ports: &str) -> Service {
    let yaml = format!(
        "metadata: {{name: web, namespace: shop, uid: s1, annotations: {{bowline.dev/addresses: \"198.51.100.1,2001:db8::1\"}}}}\n\
         spec: {{type: LoadBalancer, loadBalancerClass: bowline.dev/xdp, ports: {ports}}}"
    );
    Service::parse(&serde_saphyr::from_str(&yaml).unwrap()).unwrap()
}

pub(crate) fn slice(family: &str, ports: &str, endpoints: &str) -> discovery::EndpointSlice {
    let yaml = format!(
        "metadata: {{name: web-1, namespace: shop}}\naddressType: {family}\nports: {ports}\nendpoints: {endpoints}"
    );
    serde_saphyr::from_str(&yaml).unwrap()
}

const PORTS: &str = "[{name: http, port: 80}]";
const TARGETS: &str = "[{name: http, port: 8080, protocol: TCP}]";

fn merge(slices: &[discovery::EndpointSlice], known: &Known) -> Endpoints {
    Endpoints::merge(&service(PORTS), &slices.iter().collect::<Vec<_>>(), known)
}

/// `uid@address:port` of the usable ones.
fn usable(endpoints: &Endpoints, family: Family) -> Vec<String> {
    let usable = endpoints.usable(family, 0).into_values();
    usable
        .map(|e| format!("{}@{}:{}", e.uid, e.address, e.port))
        .collect()
}

fn endpoint(uid: &str, address: &str, conditions: &str) -> String {
    format!(
        "{{addresses: [\"{address}\"], nodeName: n1, targetRef: {{kind: Pod, name: {uid}, uid: {uid}}}, conditions: {{{conditions}}}}}"
    )
}

#[test]
fn unset_conditions_mean_ready_and_serving() {
    let of = |conditions: &str, publish| {
        let conditions: discovery::EndpointConditions =
            serde_saphyr::from_str(&format!("{{{conditions}}}")).unwrap();
        Serving::of(Some(&conditions), publish)
    };
    assert_eq!(Serving::of(None, false), Serving::Ready);
    assert_eq!(of("", false), Serving::Ready);
    assert_eq!(of("ready: false", false), Serving::No);
    assert_eq!(
        of("ready: true, terminating: true", false),
        Serving::Terminating
    );
    assert_eq!(
        of("ready: false, serving: true, terminating: true", false),
        Serving::Terminating
    );
    assert_eq!(
        of("ready: false, serving: false, terminating: true", false),
        Serving::No
    );
    assert_eq!(of("ready: false, serving: true", false), Serving::No);
    assert_eq!(of("ready: true, serving: false", false), Serving::No);
    assert_eq!(of("ready: true, serving: false", true), Serving::Ready);
}

#[test]
fn terminating_backend_serves_when_none_is_ready() {
    let known = Known::new(&["a", "b"], &["n1"]);
    let ending = endpoint(
        "a",
        "10.0.0.1",
        "ready: false, serving: true, terminating: true",
    );
    let ready = endpoint("b", "10.0.0.2", "ready: true");
    let both = merge(
        &[slice("IPv4", TARGETS, &format!("[{ending}, {ready}]"))],
        &known,
    );
    assert_eq!(usable(&both, Family::IPv4), ["b@10.0.0.2:8080"]);
    let one = merge(&[slice("IPv4", TARGETS, &format!("[{ending}]"))], &known);
    assert_eq!(usable(&one, Family::IPv4), ["a@10.0.0.1:8080"]);
}

#[test]
fn the_more_serving_copy_of_an_endpoint_counts() {
    let known = Known::new(&["a"], &["n1"]);
    let old = slice(
        "IPv4",
        TARGETS,
        &format!("[{}]", endpoint("a", "10.0.0.1", "ready: false")),
    );
    let new = slice(
        "IPv4",
        TARGETS,
        &format!("[{}]", endpoint("a", "10.0.0.1", "ready: true")),
    );
    for slices in [[old.clone(), new.clone()], [new, old]] {
        let endpoints = merge(&slices, &known);
        assert_eq!(usable(&endpoints, Family::IPv4), ["a@10.0.0.1:8080"]);
        assert!(endpoints.problems.is_empty());
    }
}

#[test]
fn ports_come_by_name_from_each_slice() {
    let known = Known::new(&["a", "b"], &["n1"]);
    let first = slice(
        "IPv4",
        TARGETS,
        &format!("[{}]", endpoint("a", "10.0.0.1", "")),
    );
    let second = slice(
        "IPv4",
        "[{name: other, port: 1}, {name: http, port: 9090}]",
        &format!("[{}]", endpoint("b", "10.0.0.2", "")),
    );
    let endpoints = merge(&[first, second], &known);
    assert_eq!(
        usable(&endpoints, Family::IPv4),
        ["a@10.0.0.1:8080", "b@10.0.0.2:9090"]
    );
}

#[test]
fn families_stay_apart_and_fqdn_is_ignored() {
    let known = Known::new(&["a"], &["n1"]);
    let slices = [
        slice(
            "IPv4",
            TARGETS,
            &format!("[{}]", endpoint("a", "10.0.0.1", "")),
        ),
        slice(
            "IPv6",
            TARGETS,
            &format!("[{}]", endpoint("a", "fd00::1", "")),
        ),
        slice(
            "FQDN",
            TARGETS,
            &format!("[{}]", endpoint("a", "a.example", "")),
        ),
    ];
    let endpoints = merge(&slices, &known);
    assert_eq!(usable(&endpoints, Family::IPv4), ["a@10.0.0.1:8080"]);
    assert_eq!(usable(&endpoints, Family::IPv6), ["a@fd00::1:8080"]);
    assert!(endpoints.problems.is_empty());
}

#[test]
fn bad_endpoints_are_named_and_the_good_one_serves() {
    let mut known = Known::new(&["a", "failed"], &["n1"]);
    known.pods.get_mut("failed").unwrap().status =
        serde_saphyr::from_str("{phase: Failed}").unwrap();
    let bad = [
        endpoint("a", "fd00::1", ""),
        endpoint("a", "127.0.0.1", ""),
        endpoint("gone", "10.0.0.3", ""),
        endpoint("failed", "10.0.0.4", ""),
        "{addresses: [\"10.0.0.5\"], nodeName: n1, targetRef: {kind: Pod, name: a}}".into(),
        "{addresses: [\"10.0.0.6\"], targetRef: {kind: Pod, uid: a}}".into(),
        "{addresses: [\"10.0.0.7\"], nodeName: n9, targetRef: {kind: Pod, uid: a}}".into(),
        "{addresses: [], nodeName: n1}".into(),
        endpoint("a", "10.0.0.1", ""),
    ];
    let endpoints = merge(
        &[slice("IPv4", TARGETS, &format!("[{}]", bad.join(", ")))],
        &known,
    );
    assert_eq!(usable(&endpoints, Family::IPv4), ["a@10.0.0.1:8080"]);
    let mut sentences: Vec<_> = endpoints.problems.iter().map(ToString::to_string).collect();
    sentences.sort();
    assert_eq!(
        sentences,
        [
            "EndpointSlice shop/web-1: address \"fd00::1\" is not IPv4 as addressType says; correct one of them",
            "EndpointSlice shop/web-1: endpoint 10.0.0.3 names Pod gone, which is not there (any more), and gets no traffic; add the Pod or remove the endpoint",
            "EndpointSlice shop/web-1: endpoint 10.0.0.4 names Pod failed, which is not there (any more), and gets no traffic; add the Pod or remove the endpoint",
            "EndpointSlice shop/web-1: endpoint 10.0.0.5 has a targetRef without uid and gets no traffic; copy metadata.uid of its Pod",
            "EndpointSlice shop/web-1: endpoint 10.0.0.6 has no nodeName and gets no traffic; set it to the name of its Node",
            "EndpointSlice shop/web-1: endpoint 10.0.0.7 is on node \"n9\", which does not exist, and gets no traffic; add the Node or correct nodeName",
            "EndpointSlice shop/web-1: endpoint 127.0.0.1 cannot be a pod; use a unicast address that is neither loopback nor link-local",
            "EndpointSlice shop/web-1: endpoint number 7 has no address; add one or remove it",
        ]
    );
}

#[test]
fn weights_come_from_the_pod_and_bad_ones_count_as_one() {
    let mut known = Known::new(&["a", "b"], &["n1"]);
    for (uid, weight) in [("a", "3"), ("b", "257")] {
        let annotations = [(WEIGHT_ANNOTATION.to_owned(), weight.to_owned())];
        known.pods.get_mut(uid).unwrap().metadata.annotations = Some(annotations.into());
    }
    let both = format!(
        "[{}, {}]",
        endpoint("a", "10.0.0.1", ""),
        endpoint("b", "10.0.0.2", "")
    );
    let endpoints = merge(&[slice("IPv4", TARGETS, &both)], &known);
    let weights: Vec<_> = endpoints
        .usable(Family::IPv4, 0)
        .values()
        .map(|e| e.weight.get())
        .collect();
    assert_eq!(weights, [3, 1]);
    assert_eq!(
        endpoints
            .problems
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        [
            "Pod shop/b: annotation bowline.dev/weight=\"257\" is not a number from 1 to 256, and 1 is used; correct it"
        ]
    );
}

#[test]
fn an_endpoint_without_a_pod_is_its_address() {
    let known = Known::new(&[], &["n1"]);
    let slices = [slice(
        "IPv4",
        TARGETS,
        "[{addresses: [\"10.0.0.1\"], nodeName: n1}]",
    )];
    assert_eq!(
        usable(&merge(&slices, &known), Family::IPv4),
        ["endpoint:10.0.0.1@10.0.0.1:8080"]
    );
}

#[test]
fn under_policy_local_each_node_falls_back_to_its_own_terminating_pods() {
    let known = Known::new(&["a", "b", "c"], &["n1", "n2"]);
    let ending = "ready: false, serving: true, terminating: true";
    let on = |node: &str, endpoint: String| endpoint.replace("n1", node);
    let all = format!(
        "[{}, {}, {}]",
        on("n2", endpoint("a", "10.0.0.1", ending)),
        endpoint("b", "10.0.0.2", ending),
        endpoint("c", "10.0.0.3", ""),
    );
    let slices = [slice("IPv4", TARGETS, &all)];
    let mut web = service(PORTS);
    let merged = |web: &Service| {
        let endpoints = Endpoints::merge(web, &slices.iter().collect::<Vec<_>>(), &known);
        usable(&endpoints, Family::IPv4)
    };
    assert_eq!(merged(&web), ["c@10.0.0.3:8080"]);
    web.traffic_policy = TrafficPolicy::Local;
    assert_eq!(merged(&web), ["a@10.0.0.1:8080", "c@10.0.0.3:8080"]);
}

#[test]
fn published_though_not_ready_means_what_ready_says() {
    let known = Known::new(&["a", "b"], &["n1"]);
    let all = format!(
        "[{}, {}]",
        endpoint("a", "10.0.0.1", "ready: true, serving: false"),
        endpoint(
            "b",
            "10.0.0.2",
            "ready: true, serving: false, terminating: true"
        ),
    );
    let slices = [slice("IPv4", TARGETS, &all)];
    let mut web = service(PORTS);
    web.publish_not_ready = true;
    let endpoints = Endpoints::merge(&web, &slices.iter().collect::<Vec<_>>(), &known);
    assert_eq!(
        usable(&endpoints, Family::IPv4),
        ["a@10.0.0.1:8080", "b@10.0.0.2:8080"]
    );
}

#[test]
fn sctp_is_served_where_the_target_port_is_the_port() {
    let service = service(
        "[{name: same, port: 3868, protocol: SCTP}, {name: other, port: 3869, protocol: SCTP}]",
    );
    let targets =
        "[{name: same, port: 3868, protocol: SCTP}, {name: other, port: 9000, protocol: SCTP}]";
    let slice = slice(
        "IPv4",
        targets,
        &format!("[{}]", endpoint("a", "10.0.0.1", "")),
    );
    let endpoints = Endpoints::merge(&service, &[&slice], &Known::new(&["a"], &["n1"]));
    assert_eq!(usable(&endpoints, Family::IPv4), ["a@10.0.0.1:3868"]);
    assert!(endpoints.usable(Family::IPv4, 1).is_empty());
    let problems: Vec<_> = endpoints.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "EndpointSlice shop/web-1: port 3869/SCTP has target port 9000 and gets no traffic; for SCTP both must be equal"
        ]
    );
}
