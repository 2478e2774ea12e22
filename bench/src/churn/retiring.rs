//! Retirement in the simulated manager: the model's machines, one for each Service, fed with what agents say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lb_controller::api::service_table::ServiceTableSpec;
use lb_controller::handoff::message::{Instruction, Report};
use lb_controller::model::retire::{Action, Nodes, Retired, Retirement, Round, Wanted};

use super::api;
use super::queue::{Nanos, instant, nanos};
use super::schemes::Said;
use super::wire::NodeId;

/// Agents that are there, and retirements under way.
#[derive(Default)]
pub(super) struct Retiring {
    agents: BTreeMap<NodeId, Agent>,
    /// Their names.
    reached: BTreeSet<Arc<str>>,
    /// By place of the Service.
    machines: Vec<Retirement>,
    /// What stands with agents: nodes by name, and the Service's UID with the proposal.
    standing: BTreeMap<Round, Standing>,
    last_round: u64,
}

/// What an agent has said since its stream is up.
#[derive(Default)]
struct Agent {
    applied: BTreeMap<Arc<str>, u64>,
    /// What it was asked.
    told: BTreeSet<Round>,
}

struct Standing {
    nodes: BTreeSet<Arc<str>>,
    instruction: Arc<Instruction>,
}

impl Retiring {
    /// An agent says something.
    pub(super) fn hear(&mut self, node: NodeId, said: Said) {
        let name: Arc<str> = api::name(node).into();
        match said {
            Said::Up => {
                self.agents.insert(node, Agent::default());
                self.reached.insert(Arc::clone(&name));
                for machine in &mut self.machines {
                    machine.asked_anew(&name);
                }
            }
            Said::Down => {
                self.agents.remove(&node);
                self.reached.remove(&name);
            }
            Said::Report(Report::Applied {
                service_uid,
                version,
                digest: _,
            }) => {
                if let Some(agent) = self.agents.get_mut(&node) {
                    agent.applied.insert(service_uid, version);
                }
            }
            Said::Report(Report::RetireReady { id, position }) => {
                let agent = self.agents.get(&node);
                if agent.is_some_and(|agent| agent.told.contains(&Round(id))) {
                    for machine in &mut self.machines {
                        machine.handed_off(&name, Round(id), position);
                    }
                }
            }
            Said::Report(
                Report::Hello { .. }
                | Report::Drain(_)
                | Report::Pins { .. }
                | Report::RetireRefused { .. },
            ) => {}
        }
    }

    /// A Service's table was written.
    pub(super) fn written(
        &mut self,
        at: usize,
        table: &ServiceTableSpec,
        now: Nanos,
    ) -> anyhow::Result<()> {
        let machine = self.machine(at);
        let actions = machine.table_changed(table, instant(now))?;
        self.carry(&table.service_uid, actions);
        Ok(())
    }

    fn machine(&mut self, at: usize) -> &mut Retirement {
        if self.machines.len() <= at {
            self.machines.resize_with(at + 1, Retirement::default);
        }
        &mut self.machines[at]
    }

    /// Begins the retirement of a Service if it is wanted, and goes on with one that is under way. Gives what is to be
    /// published.
    pub(super) fn step(
        &mut self,
        at: usize,
        wanted: Option<Wanted>,
        table: &ServiceTableSpec,
        now: Nanos,
    ) -> anyhow::Result<Option<Retired>> {
        self.machine(at);
        let uid = table.service_uid.as_str();
        let by_name: BTreeMap<String, &Agent> = self
            .agents
            .iter()
            .map(|(node, agent)| (api::name(*node), agent))
            .collect();
        let nodes = Nodes {
            reachable: &self.reached,
            applied: &|node| by_name.get(node)?.applied.get(uid).copied(),
        };
        let machine = &mut self.machines[at];
        let mut actions = Vec::new();
        if wanted.is_some() && machine.round().is_none() {
            self.last_round += 1;
            actions = machine.want(table, Round(self.last_round), &nodes, instant(now))?;
        }
        // Each step answers for one phase.
        loop {
            let next = machine.step(&nodes, instant(now));
            if next.is_empty() {
                break;
            }
            actions.extend(next);
        }
        Ok(self.carry(uid, actions))
    }

    /// Notes what agents are to be told. Gives what is to be published.
    fn carry(&mut self, uid: &str, actions: Vec<Action>) -> Option<Retired> {
        let mut publish = None;
        for action in actions {
            match action {
                Action::Ask {
                    node,
                    round,
                    proposal,
                } => {
                    let standing = self.standing.entry(round).or_insert_with(|| Standing {
                        nodes: BTreeSet::new(),
                        instruction: Arc::new(Instruction::Retire {
                            id: round.0,
                            service_uid: uid.into(),
                            base_version: proposal.version,
                            table: Box::new((*proposal).clone()),
                        }),
                    });
                    standing.nodes.insert(node);
                }
                Action::Cancel { node, round } => {
                    if let Some(standing) = self.standing.get_mut(&round) {
                        standing.nodes.remove(&node);
                        if standing.nodes.is_empty() {
                            self.standing.remove(&round);
                        }
                    }
                }
                Action::Publish(retired) => publish = Some(retired),
            }
        }
        publish
    }

    /// What agents are to be told now: compared with what they were told on the stream that they have now.
    pub(super) fn instruct(&mut self) -> Vec<(NodeId, Arc<Instruction>)> {
        let mut said = Vec::new();
        for (node, agent) in &mut self.agents {
            let name = api::name(*node);
            let stands = |standing: &Standing| standing.nodes.contains(name.as_str());
            agent.told.retain(|round| {
                let keeps = self.standing.get(round).is_some_and(stands);
                if !keeps {
                    said.push((*node, Arc::new(Instruction::Cancel { id: round.0 })));
                }
                keeps
            });
            for (round, standing) in self.standing.iter().filter(|(_, one)| stands(one)) {
                if agent.told.insert(*round) {
                    said.push((*node, Arc::clone(&standing.instruction)));
                }
            }
        }
        said
    }

    /// When to go on though nothing is heard.
    pub(super) fn deadline(&self) -> Option<Nanos> {
        let machines = self.machines.iter();
        machines.filter_map(Retirement::deadline).map(nanos).min()
    }
}

#[cfg(test)]
mod tests {
    use super::super::api::{Api, Object};
    use super::super::manager::Manager;
    use super::super::queue::SECOND;
    use super::super::segment::Transport;
    use super::*;
    use lb_controller::model::assign::QUIET;
    use lb_controller::model::pins::Position;

    /// A pod has been replaced by another, and is history.
    fn replaced() -> (Api, Manager) {
        let mut api = Api::default();
        api.add_node(NodeId(0));
        let web = api.add_service("web", Transport::Tcp);
        let old = api.start_pod(web, NodeId(0));
        let mut manager = Manager::default();
        manager.look(&api, 0).unwrap();
        api.pod_mut(old).object = Object::Terminating;
        api.start_pod(web, NodeId(0));
        manager.look(&api, SECOND).unwrap();
        (api, manager)
    }

    /// When that is retired.
    fn quiet() -> Nanos {
        SECOND + QUIET.as_secs().cast_unsigned() * SECOND
    }

    fn applied(manager: &mut Manager) {
        let said = Report::Applied {
            service_uid: manager.tables[0].service_uid.as_str().into(),
            version: manager.tables[0].version,
            digest: String::new(),
        };
        manager.hear(NodeId(0), Said::Report(said));
    }

    #[test]
    fn history_leaves_when_the_owner_has_handed_its_flows_off() {
        let (api, mut manager) = replaced();
        assert_eq!(manager.history().unwrap(), 1);
        manager.hear(NodeId(0), Said::Up);
        applied(&mut manager);
        let quiet = quiet();
        let look = manager.look(&api, quiet).unwrap();
        let [(NodeId(0), asked)] = &look.instructions[..] else {
            panic!("{look:?}");
        };
        let Instruction::Retire { id, .. } = **asked else {
            panic!("{asked:?}");
        };
        let position = Position::default();
        let ready = Report::RetireReady { id, position };
        manager.hear(NodeId(0), Said::Report(ready));
        let look = manager.retire(quiet).unwrap();
        assert_eq!(look.again, Some(quiet));
        assert!(manager.look(&api, quiet).unwrap().wrote);
        assert_eq!(manager.history().unwrap(), 0);
        assert_eq!(manager.tables[0].watermarks.len(), 1);
        applied(&mut manager);
        let look = manager.retire(quiet).unwrap();
        let cancel = Arc::new(Instruction::Cancel { id });
        assert_eq!(look.instructions, [(NodeId(0), cancel)]);
    }

    #[test]
    fn an_answer_to_what_was_asked_on_another_stream_is_none() {
        let (api, mut manager) = replaced();
        manager.hear(NodeId(0), Said::Up);
        applied(&mut manager);
        let quiet = quiet();
        let look = manager.look(&api, quiet).unwrap();
        let Instruction::Retire { id, .. } = *look.instructions[0].1 else {
            panic!("{look:?}");
        };
        manager.hear(NodeId(0), Said::Down);
        manager.hear(NodeId(0), Said::Up);
        let position = Position::default();
        manager.hear(
            NodeId(0),
            Said::Report(Report::RetireReady { id, position }),
        );
        applied(&mut manager);
        let look = manager.retire(quiet).unwrap();
        // It is asked once more.
        assert!(
            matches!(*look.instructions[0].1, Instruction::Retire { id: again, .. } if again == id)
        );
        assert_eq!(manager.history().unwrap(), 1);
    }
}
