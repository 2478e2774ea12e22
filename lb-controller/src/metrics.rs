//! Metrics, read from what the agent or the manager knows at the moment of the scrape. Names are
//! `bowline_<noun>_<unit>[_total]`; labels come from bounded sets: reasons, maps, Services, backends.

mod manager;

mod pins;

mod routes;

use std::fmt::Error;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::admin;

pub use self::manager::ManagerScrape;

/// What the agent did, apart from what its answers say.
#[derive(Clone, Debug)]
pub struct Work {
    /// Services brought in line, without and with success.
    pub applies: [u64; 2],
    /// How long each took, in seconds.
    pub apply_seconds: Histogram,
    /// Full read-backs.
    pub drift_checks: u64,
    /// Entries that differed in the last one.
    pub drift_entries: u64,
    /// Idle flows ended.
    pub flows_swept: u64,
    /// Requests refused because the queue was full.
    pub queue_overflows: u64,
}

impl Default for Work {
    fn default() -> Self {
        Self {
            applies: [0; 2],
            // From 50 µs (one slot) to 3 s (thousands of Services).
            apply_seconds: Histogram::new(
                prometheus_client::metrics::histogram::exponential_buckets(50e-6, 3.0, 11),
            ),
            drift_checks: 0,
            drift_entries: 0,
            flows_swept: 0,
            queue_overflows: 0,
        }
    }
}

/// Everything that is told of an agent.
#[derive(Clone, Debug)]
pub struct AgentScrape {
    /// Its status.
    pub status: admin::Status,
    /// Its Services.
    pub services: admin::Services,
    /// Its backends.
    pub backends: admin::Backends,
    /// What it did.
    pub work: Work,
}

/// As Prometheus reads it.
pub fn render(scrape: impl Collector) -> Result<String, Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Arc::new(scrape)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

type Labels<'a> = Vec<(&'static str, &'a str)>;

/// Writes families one after the other.
struct Families<'a>(DescriptorEncoder<'a>);

impl Families<'_> {
    fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> Result<(), Error> {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> Result<(), Error> {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            family
                .encode_family(&labels)?
                .encode_counter::<Labels<'_>, _, u64>(&value, None)?;
        }
        Ok(())
    }
}

/// One value without labels.
fn one(value: f64) -> [(Labels<'static>, f64); 1] {
    [(Vec::new(), value)]
}

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "gauges are floating point; counts stay far below 2^52"
)]
fn number(value: u64) -> f64 {
    value as f64
}

impl Collector for AgentScrape {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), Error> {
        let Self {
            status,
            services,
            backends,
            work,
        } = self;
        let mut families = Families(encoder);
        node(&mut families, status)?;
        pins::pins(&mut families, status.pins.as_ref())?;
        routes::routes(&mut families, status.routes.as_ref())?;
        traffic(&mut families, services, backends)?;
        self::work(&mut families, work)
    }
}

fn node(families: &mut Families<'_>, status: &admin::Status) -> Result<(), Error> {
    let abi = status.abi_version.to_string();
    families.gauge(
        "bowline_build_info",
        "Version of the agent and of its map layout",
        [(
            vec![("version", status.version.as_str()), ("abi", &abi)],
            1.0,
        )],
    )?;
    families.gauge(
        "bowline_node_ready",
        "1 when everything is listed and applied",
        one(truth(status.ready)),
    )?;
    families.gauge(
        "bowline_node_fresh",
        "1 when the node may decide about unknown flows",
        one(truth(status.fresh)),
    )?;
    families.gauge(
        "bowline_uptime_seconds",
        "Since the agent started",
        one(number(status.uptime_seconds)),
    )?;
    families.gauge(
        "bowline_problems",
        "Objects with something wrong",
        one(number(status.problems.len() as u64)),
    )?;
    let counts = service_counts(&status.services);
    families.gauge("bowline_services", "Services by state", counts)?;
    families.gauge(
        "bowline_next_hops_unresolved",
        "Nodes without a route or neighbour",
        one(number(status.next_hops_unresolved.len() as u64)),
    )?;
    families.gauge(
        "bowline_interface_attached",
        "1 when the interface carries the XDP program, by mode",
        status.interfaces.iter().map(|interface| {
            let mode = interface.xdp_mode.as_deref().unwrap_or("none");
            (
                vec![("interface", interface.name.as_str()), ("mode", mode)],
                truth(interface.problem.is_none()),
            )
        }),
    )?;
    let maps = || status.maps.iter();
    families.gauge(
        "bowline_map_entries",
        "Used entries",
        maps().map(|m| (vec![("map", m.map.as_str())], number(m.used))),
    )?;
    families.gauge(
        "bowline_map_capacity_entries",
        "All entries",
        maps().map(|m| (vec![("map", m.map.as_str())], number(m.capacity))),
    )?;
    families.counter(
        "bowline_dropped_packets",
        "Dropped packets by reason",
        packets("reason", &status.drops),
    )?;
    families.counter(
        "bowline_handled_packets",
        "What the programs did",
        packets("action", &status.stats),
    )
}

fn packets<'a>(label: &'static str, counters: &'a [admin::Counter]) -> Vec<(Labels<'a>, u64)> {
    counters
        .iter()
        .map(|c| (vec![(label, c.name.as_str())], c.packets))
        .collect()
}

fn service_counts(counts: &admin::ServiceCounts) -> [(Labels<'static>, f64); 3] {
    let admin::ServiceCounts {
        total: _,
        programmed,
        pending,
        failed,
    } = *counts;
    [
        ("programmed", programmed),
        ("pending", pending),
        ("failed", failed),
    ]
    .map(|(state, count)| (vec![("state", state)], number(count as u64)))
}

fn traffic(
    families: &mut Families<'_>,
    services: &admin::Services,
    backends: &admin::Backends,
) -> Result<(), Error> {
    let named: Vec<_> = services
        .services
        .iter()
        .map(|s| (format!("{}/{}", s.namespace, s.name), s))
        .collect();
    families.gauge(
        "bowline_service_table_version",
        "Version of the ServiceTable in the maps",
        named
            .iter()
            .filter_map(|(name, s)| Some((vec![("service", name.as_str())], number(s.version?)))),
    )?;
    let ports: Vec<_> = named
        .iter()
        .flat_map(|(name, s)| {
            s.ports
                .iter()
                .map(move |port| (name.as_str(), port.port.to_string(), port))
        })
        .collect();
    let of_ports = |value: fn(&admin::ServicePort) -> u64| -> Vec<(Labels<'_>, u64)> {
        ports
            .iter()
            .map(|(name, number, port)| {
                (
                    vec![
                        ("service", *name),
                        ("port", number.as_str()),
                        ("protocol", port.protocol.as_str()),
                    ],
                    value(port),
                )
            })
            .collect()
    };
    families.counter(
        "bowline_service_packets",
        "Packets forwarded, as balancer",
        of_ports(|port| port.packets),
    )?;
    families.counter(
        "bowline_service_bytes",
        "Their bytes",
        of_ports(|port| port.bytes),
    )?;
    let targets: Vec<_> = backends
        .backends
        .iter()
        .filter(|backend| backend.packets > 0)
        .map(|backend| {
            (
                std::net::SocketAddr::new(backend.address, backend.port).to_string(),
                backend,
            )
        })
        .collect();
    let of_backends = |value: fn(&admin::Backend) -> u64| -> Vec<(Labels<'_>, u64)> {
        targets
            .iter()
            .map(|(target, backend)| (vec![("backend", target.as_str())], value(backend)))
            .collect()
    };
    families.counter(
        "bowline_backend_packets",
        "Packets sent to a backend",
        of_backends(|backend| backend.packets),
    )?;
    families.counter(
        "bowline_backend_bytes",
        "Their bytes",
        of_backends(|backend| backend.bytes),
    )
}

fn work(families: &mut Families<'_>, work: &Work) -> Result<(), Error> {
    let Work {
        applies: [failed, done],
        apply_seconds,
        drift_checks,
        drift_entries,
        flows_swept,
        queue_overflows,
    } = work;
    families.counter(
        "bowline_applies",
        "Services brought in line with their tables, by outcome",
        [
            (vec![("outcome", "failed")], *failed),
            (vec![("outcome", "done")], *done),
        ],
    )?;
    let histogram = families.0.encode_descriptor(
        "bowline_apply_seconds",
        "How long a Service took",
        None,
        MetricType::Histogram,
    )?;
    apply_seconds.encode(histogram)?;
    families.counter(
        "bowline_drift_checks",
        "Full read-backs of the maps",
        [(Vec::new(), *drift_checks)],
    )?;
    families.gauge(
        "bowline_drift_entries",
        "Entries that differed in the last read-back",
        one(number(*drift_entries)),
    )?;
    families.counter(
        "bowline_swept_flows",
        "Idle flows ended",
        [(Vec::new(), *flows_swept)],
    )?;
    families.counter(
        "bowline_queue_overflows",
        "Requests refused since the agent was busy",
        [(Vec::new(), *queue_overflows)],
    )
}
