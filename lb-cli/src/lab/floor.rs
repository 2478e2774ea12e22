//! What agents and manager still remember when nothing changes any more and no long flow is open: pins, records that wait to
//! be told, hand-offs under way, history of tables. All of it must go again, or a cluster fills up over the months.

use std::fmt;
use std::time::{Duration, Instant};

use lb_controller::admin::{self, FlowState};

use super::cluster::Cluster;

/// Pins of TCP flows, queues and hand-offs are gone by then. A pin goes with the next look through the flows, which comes
/// every 12 s, once its flow has been closed for 3 s, or half-open for 16 s without a packet; half as much again for busy
/// machines.
const FLOOR_LIMIT: Duration = Duration::from_secs(45);
/// History and UDP flows are gone by then: five quiet minutes until tables forget, of UDP three; what follows takes seconds.
const FORGETTING_LIMIT: Duration = Duration::from_mins(7);
/// Between two looks.
const POLL: Duration = Duration::from_millis(500);
/// Sentences about what is left; a leak is seldom alone, and the first few say where.
const LEFT_MAX: usize = 8;

/// What was found.
#[derive(Clone, Debug)]
pub(crate) struct Floor {
    /// What was remembered at the first look.
    pub(crate) at_first: Vec<String>,
    /// What still was when there was no more time: a leak.
    pub(crate) left: Vec<String>,
    /// How long it took.
    pub(crate) took: Duration,
}

impl Floor {
    /// A sentence for each leak.
    pub(crate) fn leaks(&self) -> Vec<String> {
        let after = self.took.as_secs();
        let tell = |what| format!("{what} {after} s after the last flow has ended");
        self.left.iter().map(tell).collect()
    }
}

/// For people.
impl fmt::Display for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |what: &[String]| {
            if what.is_empty() {
                "nothing".to_owned()
            } else {
                what.join(", ")
            }
        };
        let (at_first, left) = (told(&self.at_first), told(&self.left));
        let took = self.took.as_secs_f64();
        write!(f, "left after {took:.1} s: {left}; at first: {at_first}")
    }
}

/// What shall be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Depth {
    /// Whatever serves flows that have ended. UDP has no end but silence: as many pins as there are such flows may stay.
    Flows,
    /// History of tables, and flows of UDP, too.
    All,
}

/// What an agent remembers.
#[derive(Clone, Debug)]
struct Memory {
    machine: String,
    pins: Option<admin::Pins>,
    /// Flows of its pods that have not ended: TCP, and others.
    open: [u64; 2],
    /// Backends of [`is_history`].
    older: u64,
    /// Previous tables, over all ports.
    previous: u64,
}

impl Cluster {
    /// Waits until pins, queues and positions are back where they were before anything happened; says what is left, and
    /// where. Machines without power are taken out of the cluster first, as an operator does who gives one up.
    pub(crate) async fn floor(&mut self) -> anyhow::Result<Floor> {
        for machine in self.absent.clone() {
            self.manifests.remove_node(&machine)?;
        }
        Ok(self.gone(Depth::Flows, FLOOR_LIMIT).await)
    }

    /// Waits until nothing is remembered at all.
    pub(crate) async fn forgets(&self) -> Floor {
        self.gone(Depth::All, FORGETTING_LIMIT).await
    }

    async fn gone(&self, depth: Depth, limit: Duration) -> Floor {
        let started = Instant::now();
        let mut at_first = None;
        loop {
            let mut left = match self.memories(depth).await {
                Ok((agents, retirements)) => left(depth, &agents, &retirements),
                Err(error) => vec![format!("what is left can not be seen: {error:#}")],
            };
            left.truncate(LEFT_MAX);
            let at_first = at_first.get_or_insert_with(|| left.clone());
            let took = started.elapsed();
            if left.is_empty() || took > limit {
                let at_first = std::mem::take(at_first);
                return Floor {
                    at_first,
                    left,
                    took,
                };
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn memories(
        &self,
        depth: Depth,
    ) -> anyhow::Result<(Vec<Memory>, Vec<admin::Retirement>)> {
        let mut agents = Vec::new();
        for machine in self.machines() {
            let status: admin::Status = self.ask(&machine, "/v1/status").await?;
            let flows: admin::Flows = self.ask(&machine, "/v1/flows?limit=100000").await?;
            let (mut older, mut previous) = (0, 0);
            if depth == Depth::All {
                let backends: admin::Backends = self.ask(&machine, "/v1/backends").await?;
                let backends = backends.backends.iter();
                older = backends.filter(|backend| is_history(backend)).count() as u64;
                let services: admin::Services = self.ask(&machine, "/v1/services").await?;
                let ports = services.services.iter().flat_map(|service| &service.ports);
                previous = ports.map(|port| u64::from(port.previous_tables)).sum();
            }
            agents.push(Memory {
                machine,
                pins: status.pins,
                open: open(&flows),
                older,
                previous,
            });
        }
        let manager: admin::Status = self.ask("manager", "/v1/status").await?;
        Ok((agents, manager.retirements))
    }
}

/// A backend that is nobody's first choice any more, and is still named. A slot's substitute is the occupant of another one;
/// and a node knows pods of its own while they live, as those of a lab do to its end.
fn is_history(backend: &admin::Backend) -> bool {
    backend.current_in == 0 && (backend.older_in > 0 || !backend.local)
}

/// Flows that have not ended: TCP, and others.
fn open(flows: &admin::Flows) -> [u64; 2] {
    let mut open = [0, 0];
    for flow in &flows.flows {
        let is_tcp = flow.protocol == "TCP";
        match flow.state {
            // Nothing came of it; it stays until its place is wanted.
            FlowState::HalfOpen if is_tcp => {}
            FlowState::Established if is_tcp => open[0] += 1,
            FlowState::Established | FlowState::HalfOpen => open[1] += 1,
            FlowState::Closing => {}
        }
    }
    open
}

/// What should be gone, and who remembers it: a sentence without its end for each.
fn left(depth: Depth, agents: &[Memory], retirements: &[admin::Retirement]) -> Vec<String> {
    let mut left = Vec::new();
    let mut count = |machine: &str, count: u64, what: &str| {
        if count > 0 {
            left.push(format!("{machine} has {count} {what}"));
        }
    };
    let pins = || agents.iter().filter_map(|agent| agent.pins.as_ref());
    let all_own: u64 = pins().map(|pins| pins.own).sum();
    for agent in agents {
        let Memory {
            machine,
            pins,
            open: [tcp, others],
            older,
            previous,
        } = agent;
        let may_stay = if depth == Depth::All { 0 } else { *others };
        count(machine, *tcp, "open TCP flows");
        count(machine, *older, "backends that only slots' history names");
        count(machine, *previous, "previous tables");
        if depth == Depth::All {
            count(machine, *others, "flows of UDP");
        }
        let Some(pins) = pins else {
            continue;
        };
        let own = pins.own.saturating_sub(may_stay);
        count(machine, own, "pins of its own that no flow needs");
        let held = pins.held.saturating_sub(all_own);
        count(machine, held, "pins in its maps that no node wants");
        count(machine, pins.proposals, "hand-offs under way");
        count(
            machine,
            pins.missing.len() as u64,
            "nodes whose pins it waits for",
        );
        for stream in &pins.streams {
            let behind = stream.behind.unwrap_or(0);
            count(
                machine,
                behind,
                &format!("records that {} has not acknowledged", stream.node),
            );
        }
    }
    for admin::Retirement {
        service,
        because,
        phase,
        ..
    } in retirements
    {
        left.push(format!(
            "the manager has a retirement of {service} ({because}, {phase})"
        ));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins(own: u64, held: u64) -> admin::Pins {
        admin::Pins {
            own,
            held,
            written: "1.0".to_owned(),
            missing: Vec::new(),
            proposals: 0,
            unpinned: 0,
            refused: Vec::new(),
            streams: vec![admin::PinStream {
                node: "lb-2".to_owned(),
                up: true,
                behind: Some(0),
                records: 9,
                snapshots: 1,
                received: None,
                fault: None,
            }],
        }
    }

    fn memory(machine: &str, pins: admin::Pins, open: [u64; 2]) -> Memory {
        Memory {
            machine: machine.to_owned(),
            pins: Some(pins),
            open,
            older: 0,
            previous: 0,
        }
    }

    #[test]
    fn pins_of_silent_udp_flows_may_stay_for_a_while_and_no_others() {
        let agents = |own| {
            vec![
                memory("node-1", pins(own, own), [0, 5]),
                memory("lb-1", pins(0, own), [0, 0]),
            ]
        };
        assert_eq!(left(Depth::Flows, &agents(5), &[]), [""; 0]);
        assert_eq!(
            left(Depth::Flows, &agents(7), &[]),
            ["node-1 has 2 pins of its own that no flow needs"]
        );
        assert_eq!(
            left(Depth::All, &agents(5), &[]),
            [
                "node-1 has 5 flows of UDP",
                "node-1 has 5 pins of its own that no flow needs"
            ]
        );
    }

    #[test]
    fn what_only_history_names_must_go_but_for_pods_of_the_node_itself() {
        let backend = |current_in, older_in, local| admin::Backend {
            id: 1,
            address: [10, 60, 1, 1].into(),
            port: 8080,
            identity: 7,
            pod_uid: None,
            pod: None,
            node: None,
            local,
            services: Vec::new(),
            current_in,
            older_in,
            packets: 0,
            bytes: 0,
            next_hop: admin::NextHop::Local,
        };
        assert!(is_history(&backend(0, 2, true)));
        assert!(is_history(&backend(0, 0, false)));
        assert!(!is_history(&backend(1, 2, false)), "a substitute");
        assert!(!is_history(&backend(0, 0, true)), "it lives here");
    }

    #[test]
    fn whatever_is_left_is_told_with_its_place() {
        let mut behind = pins(0, 3);
        behind.streams[0].behind = Some(4);
        behind.proposals = 1;
        let mut agent = memory("lb-1", behind, [2, 0]);
        (agent.older, agent.previous) = (6, 1);
        let retirement = admin::Retirement {
            service: "default/web".to_owned(),
            because: "quiet".to_owned(),
            phase: "settling".to_owned(),
            waits_for: Vec::new(),
            for_seconds: 3,
        };
        assert_eq!(
            left(Depth::All, &[agent], &[retirement]),
            [
                "lb-1 has 2 open TCP flows",
                "lb-1 has 6 backends that only slots' history names",
                "lb-1 has 1 previous tables",
                "lb-1 has 3 pins in its maps that no node wants",
                "lb-1 has 1 hand-offs under way",
                "lb-1 has 4 records that lb-2 has not acknowledged",
                "the manager has a retirement of default/web (quiet, settling)"
            ]
        );
    }
}
