//! `lbctl status` of a whole cluster: its manager, nodes and pools, and what is wrong. Every agent is asked in its pod, the API
//! server for the rest. Knows nothing of a single agent's details: those are `lbctl status --node NAME`.
//!
//! Permissions that a person needs beside those of [`crate::cluster`]: `list` of `services`, `addresspools`,
//! `loadbalancernodes` and `nodedrains`, `get` of `leases` in Bowline's namespace.

mod drains;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, ListParams};
use kube::{Client, Resource, ResourceExt};
use lb_controller::admin::{self, Status};
use lb_controller::api::address_pool::{self, AddressPool};
use lb_controller::api::file;
use lb_controller::api::load_balancer_node::LoadBalancerNode;
use lb_controller::api::node_drain::NodeDrain;
use lb_controller::manager::kubernetes::lease as manager_lease;
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::drains::Drain;
use crate::cluster::{self, Cluster};
use crate::output::{Output, Paint, facts, lines, parts, table};
use crate::{Outcome, agent, units};

/// Agents asked at once: each costs the API server a stream.
const AGENTS_AT_ONCE: usize = 16;
/// A leader renews every two seconds and stops after six: one that is silent for longer is gone, or clocks differ.
const RENEWED_WITHIN: Duration = Duration::from_secs(15);

/// What is shown. In JSON its fields are stable.
#[derive(Debug, Serialize)]
struct Overview {
    manager: Manager,
    nodes: Vec<Node>,
    drains: Vec<Drain>,
    pools: Vec<Pool>,
    problems: Vec<Problem>,
}

/// Who writes tables and addresses.
#[derive(Debug, Default, Serialize)]
struct Manager {
    /// The pod that leads.
    leader: Option<String>,
    /// When it last said so, by its own clock.
    renewed: Option<Timestamp>,
}

/// A node with an agent, or one that had it.
#[derive(Debug, Serialize)]
struct Node {
    name: String,
    /// The agent's pod, `NAMESPACE/NAME`.
    pod: Option<String>,
    /// What the agent says, if it does.
    status: Option<Status>,
    /// Why it says nothing.
    error: Option<String>,
}

/// An address pool, as the manager sees it.
#[derive(Debug, Serialize)]
struct Pool {
    name: String,
    addresses: Vec<String>,
    assigned: u32,
    free: u32,
}

/// Something to mend.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Problem {
    /// The object: `Service default/web`.
    object: String,
    /// What is wrong and what to change.
    sentence: String,
    /// Nodes whose agents say so; none if the manager does.
    nodes: Vec<String>,
}

/// Asks the cluster and prints its state. Unwell if an agent does not answer or is not ready, or anything has a problem.
pub(crate) fn run(cluster: &Cluster, output: Output) -> anyhow::Result<Outcome> {
    let now = Timestamp::now();
    let overview = agent::runtime()?.block_on(gather(cluster, now))?;
    output.emit(&overview, |overview, paint| show(overview, now, paint))?;
    Ok(outcome(&overview))
}

fn outcome(overview: &Overview) -> Outcome {
    let ready = |node: &Node| node.status.as_ref().is_some_and(|status| status.ready);
    if overview.problems.is_empty() && overview.nodes.iter().all(ready) {
        Outcome::Well
    } else {
        Outcome::Unwell
    }
}

async fn gather(cluster: &Cluster, now: Timestamp) -> anyhow::Result<Overview> {
    let client = cluster.client().await?;
    let listed = async {
        let of_load_balancers = ListParams::default().fields("spec.type=LoadBalancer");
        futures::try_join!(
            cluster::agents(client.clone()),
            list::<LoadBalancerNode>(&client, ListParams::default()),
            list::<NodeDrain>(&client, ListParams::default()),
            list::<AddressPool>(&client, ListParams::default()),
            list::<Service>(&client, of_load_balancers),
        )
    };
    let (pods, known, drains, pools, services) =
        Box::pin(agent::within(agent::ANSWER_LIMIT, listed)).await?;
    let namespace = pods.first().and_then(ResourceExt::namespace);
    let manager = match namespace {
        Some(namespace) => agent::within(agent::ANSWER_LIMIT, lease(&client, &namespace)).await?,
        None => Manager::default(),
    };
    let asked = pods.iter().map(|pod| ask(cluster, &client, pod));
    let mut nodes: Vec<Node> = futures::stream::iter(asked)
        .buffer_unordered(AGENTS_AT_ONCE)
        .collect()
        .await;
    nodes.extend(without_agents(&nodes, &known));
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let mut problems: Vec<_> = of_manager(&manager, now).into_iter().collect();
    problems.extend(drains.iter().filter_map(drains::problem));
    problems.extend(pools.iter().flat_map(of_pool));
    problems.extend(services.iter().flat_map(of_service));
    problems.extend(of_agents(&nodes));
    Ok(Overview {
        manager,
        nodes,
        drains: drains.iter().map(Drain::of).collect(),
        pools: pools.iter().map(pool).collect(),
        problems,
    })
}

/// All objects of a kind in all namespaces.
async fn list<K>(client: &Client, params: ListParams) -> anyhow::Result<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let listed = Api::<K>::all(client.clone()).list(&params).await;
    let kind = K::plural(&());
    let listed =
        listed.with_context(|| format!("list {kind}; that needs the verb list on {kind}"))?;
    Ok(listed.items)
}

/// Who leads, by the manager's lease.
async fn lease(client: &Client, namespace: &str) -> anyhow::Result<Manager> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let lease = leases.get_opt(manager_lease::NAME).await;
    let lease = lease.with_context(|| {
        format!("read the manager's lease; that needs the verb get on leases in {namespace}")
    })?;
    let spec = lease.and_then(|lease| lease.spec).unwrap_or_default();
    Ok(Manager {
        // A leader that ends cleanly leaves the lease with an empty name.
        leader: spec.holder_identity.filter(|holder| !holder.is_empty()),
        renewed: spec.renew_time.map(|time| time.0),
    })
}

/// What the agent in a pod says.
async fn ask(cluster: &Cluster, client: &Client, pod: &Pod) -> Node {
    let agent = cluster.agent_in(pod);
    let answer = async {
        if !cluster::runs(pod) {
            anyhow::bail!("its pod does not run");
        }
        let body = agent.ask(client.clone(), "GET", "/v1/status", &[]).await?;
        agent::value(&body)
    };
    let (status, error) = match agent::within(agent::ANSWER_LIMIT, answer).await {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    Node {
        name: cluster::node_of(pod).unwrap_or("(none yet)").to_owned(),
        pod: Some(agent.to_string()),
        status,
        error,
    }
}

/// Nodes where an agent has been, and where no pod of one is now.
fn without_agents(nodes: &[Node], known: &[LoadBalancerNode]) -> Vec<Node> {
    let with: BTreeSet<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let without = known
        .iter()
        .map(ResourceExt::name_any)
        .filter(|name| !with.contains(name.as_str()));
    let gone = |name| Node {
        name,
        pod: None,
        status: None,
        error: Some("no agent runs there any more".to_owned()),
    };
    without.map(gone).collect()
}

fn pool(pool: &AddressPool) -> Pool {
    let status = pool.status.clone().unwrap_or_default();
    Pool {
        name: pool.name_any(),
        addresses: pool.spec.addresses.clone(),
        assigned: status.assigned,
        free: status.free,
    }
}

fn of_manager(manager: &Manager, now: Timestamp) -> Option<Problem> {
    let sentence = match (&manager.leader, manager.renewed) {
        (None, _) => "none leads: see the pods of the Deployment bowline-manager".to_owned(),
        (Some(leader), Some(renewed)) if age(now, renewed) > RENEWED_WITHIN => format!(
            "{leader} has not renewed its lease for {}: see its log",
            units::duration(age(now, renewed))
        ),
        _ => return None,
    };
    Some(Problem {
        object: "manager".to_owned(),
        sentence,
        nodes: Vec::new(),
    })
}

fn of_pool(pool: &AddressPool) -> Vec<Problem> {
    let conditions = pool.status.iter().flat_map(|status| &status.conditions);
    let wrong = conditions.filter(|condition| match condition.type_.as_str() {
        address_pool::condition::READY => condition.status == "False",
        address_pool::condition::SHRUNK => condition.status == "True",
        _ => false,
    });
    wrong
        .map(|condition| Problem {
            object: format!("AddressPool {}", pool.name_any()),
            sentence: condition.message.clone(),
            nodes: Vec::new(),
        })
        .collect()
}

/// What the manager says about a Service of ours.
fn of_service(service: &Service) -> Vec<Problem> {
    let ours = [
        file::condition::ADDRESS_ALLOCATED,
        file::condition::PROGRAMMED,
    ];
    let conditions = service
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten());
    let wrong = conditions.filter(|condition| {
        ours.contains(&condition.type_.as_str()) && condition.status == "False"
    });
    let mut sentences: Vec<_> = wrong.map(|condition| &condition.message).collect();
    // Without an address there is no table either, and both say why.
    sentences.dedup();
    sentences
        .into_iter()
        .map(|sentence| Problem {
            object: format!(
                "Service {}/{}",
                service.namespace().unwrap_or_default(),
                service.name_any()
            ),
            sentence: sentence.clone(),
            nodes: Vec::new(),
        })
        .collect()
}

/// What agents say, each thing once with all nodes that say it.
fn of_agents(nodes: &[Node]) -> Vec<Problem> {
    let mut said: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    let mut say = |object: &str, sentence: &str, node: &Node| {
        let key = (object.to_owned(), sentence.to_owned());
        said.entry(key).or_default().push(node.name.clone());
    };
    for node in nodes {
        if let Some(error) = &node.error {
            say("agent", error, node);
        }
        let Some(status) = &node.status else { continue };
        for reason in &status.not_ready_because {
            say("agent", reason, node);
        }
        for admin::Problem { object, sentence } in &status.problems {
            say(object, sentence, node);
        }
        for interface in &status.interfaces {
            if let Some(problem) = &interface.problem {
                say(&format!("interface {}", interface.name), problem, node);
            }
        }
        for hop in &status.next_hops_unresolved {
            say(&format!("way to {}", hop.node), &hop.reason, node);
        }
        for source in status.sources.iter().filter(|source| !source.alive) {
            say(
                &format!("source {}", source.name),
                "its watch is lost",
                node,
            );
        }
    }
    let problems = said.into_iter().map(|((object, sentence), nodes)| Problem {
        object,
        sentence,
        nodes,
    });
    problems.collect()
}

/// A clock that was set back gives an age of zero.
fn age(now: Timestamp, then: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

fn show(overview: &Overview, now: Timestamp, paint: Paint) -> String {
    let Overview {
        manager,
        nodes,
        drains,
        pools,
        problems,
    } = overview;
    parts([
        head(manager, nodes, now, paint),
        problem_lines(problems, paint),
        node_table(nodes),
        drains::show(drains, now),
        pool_table(pools),
    ])
}

fn head(manager: &Manager, nodes: &[Node], now: Timestamp, paint: Paint) -> String {
    let ready = nodes
        .iter()
        .filter(|node| node.status.as_ref().is_some_and(|status| status.ready))
        .count();
    let state = format!("{ready} of {} ready", nodes.len());
    let all = ready == nodes.len() && !nodes.is_empty();
    let leader = match (&manager.leader, manager.renewed) {
        (Some(leader), Some(renewed)) => {
            format!(
                "{leader}, renewed {} ago",
                units::duration(age(now, renewed))
            )
        }
        (Some(leader), None) => leader.clone(),
        (None, _) => paint.bad("none"),
    };
    facts(&[
        (
            "agents",
            if all {
                paint.good(&state)
            } else {
                paint.bad(&state)
            },
        ),
        ("manager", leader),
    ])
}

fn problem_lines(problems: &[Problem], paint: Paint) -> String {
    let lines = problems.iter().map(|problem| {
        let Problem {
            object,
            sentence,
            nodes,
        } = problem;
        let nodes = match nodes.as_slice() {
            [] => String::new(),
            nodes => format!(" ({})", nodes.join(", ")),
        };
        format!("{}: {sentence}{nodes}\n", paint.bad(object))
    });
    lines.collect()
}

fn node_table(nodes: &[Node]) -> String {
    let mut rows = table([
        "NODE",
        "STATE",
        "VERSION",
        "UP",
        "XDP",
        "SERVICES",
        "PEERS",
        "ANNOUNCES",
    ]);
    for node in nodes {
        let Some(status) = &node.status else {
            rows.add_row([&node.name, "silent"]);
            continue;
        };
        let modes: BTreeSet<&str> = status
            .interfaces
            .iter()
            .map(|interface| interface.xdp_mode.as_deref().unwrap_or("none"))
            .collect();
        let alive = status
            .peers
            .iter()
            .filter(|peer| peer.state == "alive")
            .count();
        let vips: Vec<String> = status.announced.iter().map(|a| a.vip.to_string()).collect();
        rows.add_row([
            node.name.clone(),
            if status.ready { "ready" } else { "not ready" }.to_owned(),
            status.version.clone(),
            units::duration(Duration::from_secs(status.uptime_seconds)),
            modes.into_iter().collect::<Vec<_>>().join(", "),
            format!("{}/{}", status.services.programmed, status.services.total),
            format!("{alive}/{}", status.peers.len()),
            announces(&vips),
        ]);
    }
    lines(&rows)
}

/// A few VIPs by address, many by number.
fn announces(vips: &[String]) -> String {
    const SHOWN_MAX: usize = 4;
    match vips {
        [] => "-".to_owned(),
        few if few.len() <= SHOWN_MAX => few.join(", "),
        many => format!("{} VIPs", many.len()),
    }
}

fn pool_table(pools: &[Pool]) -> String {
    let mut rows = table(["POOL", "ADDRESSES", "ASSIGNED", "FREE"]);
    for pool in pools {
        let Pool {
            name,
            addresses,
            assigned,
            free,
        } = pool;
        let free = match *free {
            u32::MAX => format!("{} or more", u32::MAX),
            free => free.to_string(),
        };
        rows.add_row([name, &addresses.join(", "), &assigned.to_string(), &free]);
    }
    lines(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_controller::api::node_drain::Phase;
    use serde_json::json;

    const NOW: &str = "2026-01-01T00:01:00Z";

    fn now() -> Timestamp {
        NOW.parse().unwrap()
    }

    fn object<T: DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn status(node: &str, problems: &serde_json::Value) -> Status {
        object(json!({
            "node": node, "role": "both", "version": "0.1.0", "abi_version": 3, "pin_dir": "/pins", "uptime_seconds": 192,
            "addresses": ["10.0.0.11"], "ready": true, "not_ready_because": [], "fresh": true,
            "interfaces": [{"name": "eth0", "ifindex": 2, "xdp_mode": "native", "xdp_program_id": 4, "tc_kind": "tcx",
                "problem": null}],
            "sources": [{"name": "cluster", "alive": true, "last_list": NOW, "last_apply": NOW}],
            "services": {"total": 2, "programmed": 1, "pending": 1, "failed": 0},
            "problems": problems, "maps": [], "drops": [], "stats": [], "next_hops_unresolved": [],
            "peers": [{"node": "other", "state": "alive", "for_seconds": 9}],
            "announced": [{"vip": "198.51.100.1", "interface": "eth0", "mac": "02:00:00:00:00:01"}]
        }))
    }

    fn answering(node: &str, problems: &serde_json::Value) -> Node {
        Node {
            name: node.to_owned(),
            pod: Some(format!("bowline-system/{node}")),
            status: Some(status(node, problems)),
            error: None,
        }
    }

    fn silent(node: &str) -> Node {
        Node {
            name: node.to_owned(),
            pod: None,
            status: None,
            error: Some("its pod does not run".to_owned()),
        }
    }

    fn leading(renewed: &str) -> Manager {
        Manager {
            leader: Some("bowline-manager-a".to_owned()),
            renewed: Some(renewed.parse().unwrap()),
        }
    }

    #[test]
    fn everything_that_is_known_has_its_place() {
        let full = json!([{"object": "Service default/web", "sentence": "port 53 is not free"}]);
        let nodes = vec![
            answering("node1", &full),
            answering("node2", &full),
            silent("node3"),
        ];
        let overview = Overview {
            manager: leading("2026-01-01T00:00:58Z"),
            problems: of_agents(&nodes),
            nodes,
            drains: vec![Drain {
                node: "node2".to_owned(),
                phase: Phase::Quiesce,
                since: Some("2026-01-01T00:00:30Z".parse().unwrap()),
                open: 311,
                waits_for: vec!["its connections to end, or their pods".to_owned()],
            }],
            pools: vec![Pool {
                name: "public".to_owned(),
                addresses: vec!["198.51.100.0/28".to_owned()],
                assigned: 1,
                free: 15,
            }],
        };
        assert_eq!(
            show(&overview, now(), Paint(false)),
            "\
agents   2 of 3 ready
manager  bowline-manager-a, renewed 2 s ago

Service default/web: port 53 is not free (node1, node2)
agent: its pod does not run (node3)

NODE   STATE   VERSION  UP        XDP     SERVICES  PEERS  ANNOUNCES
node1  ready   0.1.0    3 m 12 s  native  1/2       1/1    198.51.100.1
node2  ready   0.1.0    3 m 12 s  native  1/2       1/1    198.51.100.1
node3  silent

DRAIN  PHASE    SINCE     OPEN  WAITS FOR
node2  Quiesce  30 s ago  311   its connections to end, or their pods

POOL    ADDRESSES        ASSIGNED  FREE
public  198.51.100.0/28  1         15
"
        );
        assert_eq!(outcome(&overview), Outcome::Unwell);
    }

    #[test]
    fn agents_that_are_ready_and_say_nothing_are_well_and_one_that_is_not_is_unwell() {
        let mut overview = Overview {
            manager: leading(NOW),
            nodes: vec![answering("node1", &json!([]))],
            drains: Vec::new(),
            pools: Vec::new(),
            problems: Vec::new(),
        };
        assert_eq!(outcome(&overview), Outcome::Well);
        overview.nodes.push(silent("node2"));
        assert_eq!(outcome(&overview), Outcome::Unwell);
    }

    #[test]
    fn a_manager_that_is_silent_is_a_problem_and_one_with_a_clock_ahead_is_none() {
        let sentence =
            |manager: &Manager| of_manager(manager, now()).map(|problem| problem.sentence);
        assert_eq!(sentence(&leading("2026-01-01T00:00:50Z")), None);
        assert_eq!(sentence(&leading("2026-01-01T00:02:00Z")), None);
        let silent = sentence(&leading("2026-01-01T00:00:00Z")).unwrap();
        assert_eq!(
            silent,
            "bowline-manager-a has not renewed its lease for 1 m 0 s: see its log"
        );
        assert!(
            sentence(&Manager::default())
                .unwrap()
                .starts_with("none leads")
        );
    }

    #[test]
    fn a_pending_service_says_why_once_and_a_foreign_condition_is_not_ours() {
        let why = "no pool has a free IPv4 address: add an AddressPool";
        let condition = |kind: &str, status: &str, message: &str| json!({"type": kind, "status": status, "reason": "X", "message": message, "lastTransitionTime": NOW});
        let service: Service = object(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "status": {"conditions": [
                condition("bowline.dev/AddressAllocated", "False", why),
                condition("bowline.dev/Programmed", "False", why),
                condition("example.com/Other", "False", "not ours"),
            ]}
        }));
        let expected = Problem {
            object: "Service default/web".to_owned(),
            sentence: why.to_owned(),
            nodes: Vec::new(),
        };
        assert_eq!(of_service(&service), [expected]);
    }

    #[test]
    fn a_pool_that_is_not_ready_or_has_shrunk_says_so() {
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "X", "message": kind, "lastTransitionTime": NOW});
        let wrong = |conditions: serde_json::Value| -> Vec<String> {
            let pool: AddressPool = object(json!({
                "apiVersion": "bowline.dev/v1alpha1", "kind": "AddressPool", "metadata": {"name": "public"},
                "spec": {"addresses": []}, "status": {"conditions": conditions}
            }));
            of_pool(&pool)
                .into_iter()
                .map(|problem| problem.sentence)
                .collect()
        };
        assert!(
            wrong(json!([
                condition("Ready", "True"),
                condition("Shrunk", "False")
            ]))
            .is_empty()
        );
        assert_eq!(
            wrong(json!([
                condition("Ready", "False"),
                condition("Shrunk", "True")
            ])),
            ["Ready", "Shrunk"]
        );
    }

    #[test]
    fn a_node_that_had_an_agent_and_has_none_now_is_listed() {
        let known = |name: &str| -> LoadBalancerNode {
            object(json!({
                "apiVersion": "bowline.dev/v1alpha1", "kind": "LoadBalancerNode", "metadata": {"name": name},
                "spec": {"role": "both", "version": "0.1.0"}
            }))
        };
        let found = without_agents(&[silent("node1")], &[known("node1"), known("node2")]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "node2");
    }

    #[test]
    fn many_vips_are_shown_by_number() {
        let vips: Vec<String> = (0..5).map(|i| format!("198.51.100.{i}")).collect();
        assert_eq!(announces(&[]), "-");
        assert_eq!(announces(&vips[..2]), "198.51.100.0, 198.51.100.1");
        assert_eq!(announces(&vips), "5 VIPs");
    }
}
