//! A Service as far as it concerns us: checked once, here. What is wrong with it becomes problems; what is right works.
//!
//! Knows nothing of endpoints, and nothing of other Services (see [`super::ipam`]).

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;

use super::problem::{
    ADDRESSES_ANNOTATION, Fault, Problem, SOURCE_RANGES_ANNOTATION, TRACKING_ANNOTATION,
};
use super::shape::HashFields;
use crate::api::service_table::{Family, Port, Protocol, Tracking, TrafficPolicy};

/// The class we act on; another one is never touched.
pub const CLASS: &str = "bowline.dev/xdp";

/// A Service of our class.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// Namespace and name, `default/web`.
    pub name: String,
    /// Its UID; the name where there is none.
    pub uid: String,
    /// When it was created: the older one of two keeps a VIP.
    pub created: Option<Timestamp>,
    /// Its addresses, at most one per family, IPv4 first.
    pub vips: Vec<IpAddr>,
    /// Its ports, no port and protocol twice, in the order of the object.
    pub ports: Vec<Port>,
    /// What the flow hash covers.
    pub fields: HashFields,
    /// Sources that may speak to it, in order and without host bits; everybody if there is none.
    pub source_ranges: Vec<IpNet>,
    /// Which pods packets go to.
    pub traffic_policy: TrafficPolicy,
    /// Which flows are pinned.
    pub tracking: Tracking,
    /// `ready` counts for terminating and not serving pods too.
    pub publish_not_ready: bool,
    /// What is wrong with it; a fatal one leaves it without tables.
    pub problems: Vec<Problem>,
}

impl Service {
    /// A Service of type `LoadBalancer` and our class; none for any other, which must not be touched.
    pub fn parse(object: &core::Service) -> Option<Self> {
        let spec = object.spec.as_ref()?;
        if spec.type_.as_deref() != Some("LoadBalancer")
            || spec.load_balancer_class.as_deref() != Some(CLASS)
        {
            return None;
        }
        let meta = &object.metadata;
        let name = format!(
            "{}/{}",
            meta.namespace.as_deref().unwrap_or("default"),
            meta.name.as_deref().unwrap_or_default()
        );
        let mut faults = Vec::new();
        let vips = addresses(object, spec, &mut faults);
        let ports = ports(spec, &mut faults);
        let source_ranges = source_ranges(object, spec, &mut faults);
        let tracking = tracking(object, &mut faults);
        Some(Self {
            uid: meta.uid.clone().unwrap_or_else(|| name.clone()),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            vips,
            ports,
            fields: match spec.session_affinity.as_deref() {
                Some("ClientIP") => HashFields::Addresses,
                Some(_) | None => HashFields::FiveTuple,
            },
            source_ranges,
            traffic_policy: match spec.external_traffic_policy.as_deref() {
                Some("Local") => TrafficPolicy::Local,
                Some(_) | None => TrafficPolicy::Cluster,
            },
            tracking,
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            problems: faults
                .into_iter()
                .map(|f| Problem::new("Service", &name, f))
                .collect(),
            name,
        })
    }

    /// The problem that leaves it without tables, if there is one.
    pub fn fatal(&self) -> Option<&Problem> {
        self.problems
            .iter()
            .find(|problem| problem.fault.is_fatal())
    }
}

/// The addresses asked for: by annotation, else by the deprecated field.
fn addresses(
    object: &core::Service,
    spec: &core::ServiceSpec,
    faults: &mut Vec<Fault>,
) -> Vec<IpAddr> {
    let annotation = object
        .metadata
        .annotations
        .as_ref()
        .and_then(|a| a.get(ADDRESSES_ANNOTATION))
        .filter(|text| !text.trim().is_empty());
    let asked = annotation
        .or(spec.load_balancer_ip.as_ref())
        .map_or("", String::as_str);
    let mut vips: Vec<IpAddr> = Vec::new();
    for text in asked
        .split(',')
        .map(str::trim)
        .filter(|text| !text.is_empty())
    {
        match address(text, spec, &vips) {
            Ok(vip) => vips.push(vip),
            Err(fault) => faults.push(fault),
        }
    }
    vips.sort();
    if vips.is_empty() {
        faults.push(Fault::NoAddress);
    }
    vips
}

fn address(text: &str, spec: &core::ServiceSpec, others: &[IpAddr]) -> Result<IpAddr, Fault> {
    let vip: IpAddr = text
        .parse()
        .map_err(|_| Fault::AddressMalformed(text.into()))?;
    let family = Family::of(vip);
    if !is_unicast(vip) {
        return Err(Fault::AddressUnusable(vip));
    }
    let listed = |families: &Vec<String>| {
        families.is_empty() || families.iter().any(|f| *f == format!("{family:?}"))
    };
    if !spec.ip_families.as_ref().is_none_or(listed) {
        return Err(Fault::AddressFamily(vip));
    }
    if others.iter().any(|other| Family::of(*other) == family) {
        return Err(Fault::AddressTwice(family));
    }
    Ok(vip)
}

/// Who may speak to it: by the field, else by the annotation. If something was asked for and nothing of it makes sense, nothing
/// is served rather than too much.
fn source_ranges(
    object: &core::Service,
    spec: &core::ServiceSpec,
    faults: &mut Vec<Fault>,
) -> Vec<IpNet> {
    let field = spec.load_balancer_source_ranges.as_ref();
    let field = field.filter(|ranges| !ranges.is_empty());
    let annotations = object.metadata.annotations.as_ref();
    let annotation = annotations
        .and_then(|a| a.get(SOURCE_RANGES_ANNOTATION))
        .filter(|text| !text.trim().is_empty());
    let asked: Vec<&str> = match (field, annotation) {
        (Some(field), _) => field.iter().map(String::as_str).collect(),
        (None, Some(annotation)) => annotation.split(',').collect(),
        (None, None) => return Vec::new(),
    };
    let mut ranges = Vec::new();
    for text in asked.into_iter().map(str::trim) {
        match text.parse::<IpNet>() {
            Ok(range) => ranges.push(range.trunc()),
            Err(_) => faults.push(Fault::SourceRange(text.to_owned())),
        }
    }
    ranges.sort_unstable();
    ranges.dedup();
    if ranges.is_empty() {
        faults.push(Fault::SourceRanges);
    }
    ranges
}

/// Which flows are to be pinned, by annotation.
fn tracking(object: &core::Service, faults: &mut Vec<Fault>) -> Tracking {
    let annotations = object.metadata.annotations.as_ref();
    let asked = annotations.and_then(|a| a.get(TRACKING_ANNOTATION));
    match asked.map(|text| text.trim()) {
        Some("all") => Tracking::All,
        None | Some("auto" | "") => Tracking::Auto,
        Some(other) => {
            faults.push(Fault::Tracking(other.to_owned()));
            Tracking::Auto
        }
    }
}

/// Whether packets from or to other machines can carry the address.
pub(super) fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => {
            !(a.is_unspecified()
                || a.is_loopback()
                || a.is_multicast()
                || a.is_broadcast()
                || a.is_link_local())
        }
        IpAddr::V6(a) => {
            !(a.is_unspecified()
                || a.is_loopback()
                || a.is_multicast()
                || a.is_unicast_link_local()
                || a.to_ipv4_mapped().is_some())
        }
    }
}

fn ports(spec: &core::ServiceSpec, faults: &mut Vec<Fault>) -> Vec<Port> {
    let mut ports: Vec<Port> = Vec::new();
    for asked in spec.ports.iter().flatten() {
        match port(asked, &ports) {
            Ok(port) => ports.push(port),
            Err(fault) => faults.push(fault),
        }
    }
    if ports.is_empty() {
        faults.push(Fault::NoPorts);
    }
    ports
}

fn port(asked: &core::ServicePort, others: &[Port]) -> Result<Port, Fault> {
    let Ok(port @ 1..) = u16::try_from(asked.port) else {
        return Err(Fault::PortRange(asked.port));
    };
    let protocol = protocol(asked.protocol.as_deref()).map_err(|protocol| Fault::PortProtocol {
        port: asked.port,
        protocol,
    })?;
    if others
        .iter()
        .any(|other| (other.port, other.protocol) == (port, protocol))
    {
        return Err(Fault::PortTwice { port, protocol });
    }
    Ok(Port {
        name: asked.name.clone().unwrap_or_default(),
        port,
        protocol,
    })
}

/// A protocol by its name, TCP where there is none.
pub(super) fn protocol(name: Option<&str>) -> Result<Protocol, String> {
    match name {
        None | Some("TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(other.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(yaml: &str) -> Option<Service> {
        let (addresses, spec) = yaml.split_once('\n').unwrap();
        let spec = spec.replace('\n', "\n  ");
        let yaml = format!(
            "metadata: {{name: web, namespace: shop, uid: u1, annotations: {{bowline.dev/addresses: \"{addresses}\"}}}}\n\
             spec:\n  type: LoadBalancer\n  loadBalancerClass: bowline.dev/xdp\n  {spec}"
        );
        Service::parse(&serde_saphyr::from_str(&yaml).unwrap())
    }

    fn problems(yaml: &str) -> Vec<String> {
        service(yaml)
            .unwrap()
            .problems
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_plain_service_has_no_problem() {
        let service = service("2001:db8::1, 198.51.100.1\nports: [{name: https, port: 443}, {name: dns, port: 53, protocol: UDP}]\nsessionAffinity: ClientIP").unwrap();
        let port = |name: &str, port, protocol| Port {
            name: name.into(),
            port,
            protocol,
        };
        assert_eq!(
            service,
            Service {
                name: "shop/web".into(),
                uid: "u1".into(),
                created: None,
                vips: vec![
                    "198.51.100.1".parse().unwrap(),
                    "2001:db8::1".parse().unwrap()
                ],
                ports: vec![
                    port("https", 443, Protocol::Tcp),
                    port("dns", 53, Protocol::Udp)
                ],
                fields: HashFields::Addresses,
                source_ranges: vec![],
                traffic_policy: TrafficPolicy::Cluster,
                tracking: Tracking::Auto,
                publish_not_ready: false,
                problems: vec![],
            }
        );
    }

    #[test]
    fn another_class_or_type_is_not_ours() {
        let parse = |spec: &str| {
            Service::parse(
                &serde_saphyr::from_str(&format!("metadata: {{name: web}}\nspec: {spec}")).unwrap(),
            )
        };
        assert_eq!(
            parse("{type: LoadBalancer, loadBalancerClass: other/class}"),
            None
        );
        assert_eq!(parse("{type: LoadBalancer}"), None);
        assert_eq!(
            parse("{type: ClusterIP, loadBalancerClass: bowline.dev/xdp}"),
            None
        );
    }

    #[test]
    fn each_mistake_has_its_sentence_and_the_rest_works() {
        let yaml = "198.51.100.1, 198.51.100.2, 127.0.0.1, nonsense\nports: [{port: 80}, {port: 80}, {port: 0}, {port: 70000}, {port: 5, protocol: DCCP}]\nexternalTrafficPolicy: Local";
        let service = service(yaml).unwrap();
        assert_eq!((service.vips.len(), service.ports.len()), (1, 1));
        assert_eq!(service.fatal(), None);
        assert_eq!(
            problems(yaml),
            [
                "Service shop/web: it asks for more than one IPv4 address; keep one per family",
                "Service shop/web: 127.0.0.1 cannot be a VIP; use a unicast address that is neither loopback nor link-local",
                "Service shop/web: \"nonsense\" is not an IP address; write addresses such as 198.51.100.1, separated by commas",
                "Service shop/web: port 80/TCP is there twice and the second is ignored; remove one of them",
                "Service shop/web: port 0 is not from 1 to 65535; correct it",
                "Service shop/web: port 70000 is not from 1 to 65535; correct it",
                "Service shop/web: port 5 has protocol DCCP, which is not balanced; use TCP, UDP or SCTP",
            ]
        );
    }

    #[test]
    fn without_address_or_ports_or_with_senseless_source_ranges_it_stays_pending() {
        let reason = |yaml| service(yaml).unwrap().fatal().map(Problem::reason);
        assert_eq!(reason("\nports: [{port: 80}]"), Some("NoAddress"));
        assert_eq!(reason("198.51.100.1\nports: []"), Some("PortInvalid"));
        assert_eq!(
            reason("198.51.100.1\nports: [{port: 80}]\nloadBalancerSourceRanges: [\" \"]"),
            Some("SourceRangeInvalid")
        );
        assert_eq!(
            reason("2001:db8::1\nports: [{port: 80}]\nipFamilies: [IPv4]"),
            Some("NoAddress")
        );
    }

    #[test]
    fn source_ranges_are_read_from_the_field_before_the_annotation() {
        let yaml = "198.51.100.1\nports: [{port: 80}]\nexternalTrafficPolicy: Local\nloadBalancerSourceRanges: [\" 203.0.113.7/24 \", 2001:db8::/32, 10.0.0.1, 203.0.113.0/24]";
        let web = service(yaml).unwrap();
        assert_eq!(
            web.source_ranges,
            ["203.0.113.0/24", "2001:db8::/32"].map(|range| range.parse().unwrap())
        );
        assert_eq!(
            (web.traffic_policy, web.fatal()),
            (TrafficPolicy::Local, None)
        );
        assert_eq!(
            problems(yaml),
            [
                "Service shop/web: source range \"10.0.0.1\" is no CIDR and lets nobody in; write ranges such as 203.0.113.0/24 and 2001:db8::/32"
            ]
        );
        let annotated = |spec: &str, ranges: &str| {
            let yaml = format!(
                "metadata: {{name: web, annotations: {{{SOURCE_RANGES_ANNOTATION}: \"{ranges}\"}}}}\n\
                 spec: {{type: LoadBalancer, loadBalancerClass: bowline.dev/xdp{spec}}}"
            );
            Service::parse(&serde_saphyr::from_str(&yaml).unwrap())
                .unwrap()
                .source_ranges
        };
        let ranges = |text: &str| vec![text.parse::<IpNet>().unwrap()];
        assert_eq!(
            annotated("", "192.0.2.0/24, nonsense"),
            ranges("192.0.2.0/24")
        );
        assert_eq!(annotated("", " "), []);
        assert_eq!(
            annotated(", loadBalancerSourceRanges: [10.0.0.0/8]", "192.0.2.0/24"),
            ranges("10.0.0.0/8")
        );
    }

    #[test]
    fn all_flows_are_tracked_only_if_the_annotation_says_so() {
        let parse = |tracking: &str| {
            let yaml = format!(
                "metadata: {{name: web, annotations: {{{TRACKING_ANNOTATION}: \"{tracking}\", {ADDRESSES_ANNOTATION}: 198.51.100.1}}}}\n\
                 spec: {{type: LoadBalancer, loadBalancerClass: bowline.dev/xdp, ports: [{{port: 80}}]}}"
            );
            let service = Service::parse(&serde_saphyr::from_str(&yaml).unwrap()).unwrap();
            (
                service.tracking,
                service.problems.len(),
                service.fatal().is_none(),
            )
        };
        assert_eq!(parse("all"), (Tracking::All, 0, true));
        assert_eq!(parse(" auto "), (Tracking::Auto, 0, true));
        assert_eq!(parse(""), (Tracking::Auto, 0, true));
        assert_eq!(parse("every"), (Tracking::Auto, 1, true));
    }

    #[test]
    fn the_deprecated_field_counts_without_the_annotation() {
        assert_eq!(
            service("\nports: [{port: 80}]\nloadBalancerIP: 198.51.100.9")
                .unwrap()
                .vips,
            ["198.51.100.9".parse::<IpAddr>().unwrap()]
        );
    }
}
