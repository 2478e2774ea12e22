//! Instructions of the manager and reports of agents.

use std::time::Duration;

use super::{Malformed, name, position, sentence};
use crate::admin;
use crate::api::node_drain::Phase;
use crate::handoff::message::{Drained, Instruction, Report};
use crate::handoff::wire;
use crate::liveness::MEMBERS_MAX;
use crate::model::pins::Incarnation;

impl From<&Instruction> for wire::Instruction {
    fn from(instruction: &Instruction) -> Self {
        use wire::instruction::{Cancel, Instruction as Wire, Retire};
        let instruction = match instruction {
            Instruction::Retire {
                id,
                service_uid,
                base_version,
                table,
            } => Wire::Retire(Retire {
                id: *id,
                service_uid: service_uid.to_string(),
                base_version: *base_version,
                table: serde_json::to_vec(table).expect("a table has string keys only"),
            }),
            Instruction::Cancel { id } => Wire::Cancel(Cancel { id: *id }),
        };
        Self {
            instruction: Some(instruction),
        }
    }
}

impl TryFrom<wire::Instruction> for Instruction {
    type Error = Malformed;

    fn try_from(instruction: wire::Instruction) -> Result<Self, Malformed> {
        use wire::instruction::Instruction as Wire;
        let instruction = instruction.instruction;
        match instruction.ok_or(Malformed::Missing("an instruction"))? {
            Wire::Retire(told) => Ok(Self::Retire {
                id: told.id,
                service_uid: name("the UID of a Service", told.service_uid)?,
                base_version: told.base_version,
                table: serde_json::from_slice(&told.table).map_err(Malformed::Table)?,
            }),
            Wire::Cancel(told) => Ok(Self::Cancel { id: told.id }),
        }
    }
}

impl From<&Report> for wire::Report {
    fn from(report: &Report) -> Self {
        use wire::report::{Acknowledged, Applied, Hello, Pins, Report as Wire, RetireReady};

        let report = match report {
            Report::Hello {
                node,
                incarnation,
                role,
                ready,
            } => Wire::Hello(Hello {
                node: node.to_string(),
                incarnation: incarnation.0,
                role: to_role(*role).into(),
                ready: *ready,
            }),
            Report::Applied {
                service_uid,
                version,
                digest,
            } => Wire::Applied(Applied {
                service_uid: service_uid.to_string(),
                version: *version,
                digest: digest.clone(),
            }),
            Report::RetireReady { id, position } => Wire::RetireReady(RetireReady {
                id: *id,
                position: Some((*position).into()),
            }),
            Report::RetireRefused { id, why } => Wire::RetireRefused(wire::report::RetireRefused {
                id: *id,
                why: why.clone(),
            }),
            Report::Drain(drained) => Wire::Drain(drained.into()),
            Report::Pins {
                written,
                acknowledged,
            } => Wire::Pins(Pins {
                written: Some((*written).into()),
                acknowledged: acknowledged
                    .iter()
                    .map(|(balancer, position)| Acknowledged {
                        balancer: balancer.to_string(),
                        position: Some((*position).into()),
                    })
                    .collect(),
            }),
        };
        Self {
            report: Some(report),
        }
    }
}

impl TryFrom<wire::Report> for Report {
    type Error = Malformed;

    fn try_from(report: wire::Report) -> Result<Self, Malformed> {
        use wire::report::Report as Wire;
        match report.report.ok_or(Malformed::Missing("a report"))? {
            Wire::Hello(told) => Ok(Self::Hello {
                role: role(told.role())?,
                node: name("the name of a node", told.node)?,
                incarnation: Incarnation(told.incarnation),
                ready: told.ready,
            }),
            Wire::Applied(told) => Ok(Self::Applied {
                service_uid: name("the UID of a Service", told.service_uid)?,
                version: told.version,
                digest: name("a digest", told.digest)?.to_string(),
            }),
            Wire::RetireReady(told) => Ok(Self::RetireReady {
                id: told.id,
                position: position(told.position)?,
            }),
            Wire::RetireRefused(told) => Ok(Self::RetireRefused {
                id: told.id,
                why: sentence(told.why),
            }),
            Wire::Drain(told) => Ok(Self::Drain(told.try_into()?)),
            Wire::Pins(told) => {
                if told.acknowledged.len() > MEMBERS_MAX {
                    return Err(Malformed::Range("the number of balancers"));
                }
                let one = |told: wire::report::Acknowledged| {
                    let balancer = name("the name of a balancer", told.balancer)?;
                    Ok::<_, Malformed>((balancer, position(told.position)?))
                };
                Ok(Self::Pins {
                    written: position(told.written)?,
                    acknowledged: told
                        .acknowledged
                        .into_iter()
                        .map(one)
                        .collect::<Result<_, _>>()?,
                })
            }
        }
    }
}

impl From<&Drained> for wire::report::Drain {
    fn from(drained: &Drained) -> Self {
        let Drained {
            uid,
            phase,
            handed_off,
            fault,
            open,
            quiet_for,
        } = drained;
        Self {
            uid: uid.to_string(),
            phase: phase.map(|phase| phase as u32),
            handed_off: handed_off.map(|(position, _)| position.into()),
            pinned: handed_off.map_or(0, |(_, pinned)| pinned),
            fault: fault.clone().unwrap_or_default(),
            open: *open,
            quiet_ms: u64::try_from(quiet_for.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl TryFrom<wire::report::Drain> for Drained {
    type Error = Malformed;

    fn try_from(told: wire::report::Drain) -> Result<Self, Malformed> {
        let phase = told.phase.map(|told| {
            let phase = Phase::ALL.iter().find(|phase| **phase as u32 == told);
            phase
                .copied()
                .ok_or(Malformed::Range("the phase of a drain"))
        });
        let handed_off = told.handed_off.map(|at| position(Some(at)));
        Ok(Self {
            uid: name("the UID of a drain", told.uid)?,
            phase: phase.transpose()?,
            handed_off: handed_off.transpose()?.map(|at| (at, told.pinned)),
            fault: (!told.fault.is_empty()).then(|| sentence(told.fault)),
            open: told.open,
            quiet_for: Duration::from_millis(told.quiet_ms),
        })
    }
}

fn to_role(role: admin::Role) -> wire::report::Role {
    match role {
        admin::Role::Balancer => wire::report::Role::Balancer,
        admin::Role::Owner => wire::report::Role::Owner,
        admin::Role::Both => wire::report::Role::Both,
        admin::Role::Manager => wire::report::Role::Unspecified,
    }
}

fn role(role: wire::report::Role) -> Result<admin::Role, Malformed> {
    match role {
        wire::report::Role::Balancer => Ok(admin::Role::Balancer),
        wire::report::Role::Owner => Ok(admin::Role::Owner),
        wire::report::Role::Both => Ok(admin::Role::Both),
        wire::report::Role::Unspecified => Err(Malformed::Missing("the role of a node")),
    }
}
