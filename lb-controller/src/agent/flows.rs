//! The flow table as it is shown.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use lb_ebpf::abi::{TICK_SHIFT, flow_state};
use lb_ebpf::wire::protocol;

use crate::admin::{FLOWS_LIMIT_DEFAULT, FLOWS_LIMIT_MAX, Flow, FlowState, Flows, PinReason};
use crate::dataplane::flows::{FlowRecord, Flows as FlowTable, Stage};
use crate::model::pins::FlowKey;
use crate::serve::{AskError, FlowsWanted};

/// Flows of this node that are pinned, and why.
pub(super) struct Pinned {
    /// Flows and their pods.
    pub(super) pods: HashMap<FlowKey, SocketAddr>,
    /// VIPs whose flows all are.
    pub(super) tracked: BTreeSet<IpAddr>,
}

impl Pinned {
    fn reason(&self, record: &FlowRecord) -> Option<PinReason> {
        let key = FlowKey::new(record.protocol, record.client, record.vip).ok()?;
        if self.pods.get(&key) != Some(&record.pod) {
            return None;
        }
        Some(if record.is_reported {
            PinReason::Deviation
        } else if self.tracked.contains(&record.vip.ip()) {
            PinReason::Tracked
        } else {
            PinReason::HandedOff
        })
    }
}

/// Reads as many flows as wanted.
pub(super) fn list(
    table: &FlowTable,
    wanted: &FlowsWanted,
    pinned: &Pinned,
) -> Result<Flows, AskError> {
    let limit = wanted.limit.unwrap_or(FLOWS_LIMIT_DEFAULT);
    if limit > FLOWS_LIMIT_MAX {
        return Err(AskError::Bad(format!(
            "limit {limit} is above {FLOWS_LIMIT_MAX}; choose clients or VIPs instead"
        )));
    }
    let mut flows = Flows::default();
    table.list(|record| {
        if wants(wanted, &record) {
            flows.truncated = flows.flows.len() == limit;
            if !flows.truncated {
                flows.flows.push(shown(&record, pinned.reason(&record)));
            }
        }
        !flows.truncated
    })?;
    Ok(flows)
}

fn wants(wanted: &FlowsWanted, record: &FlowRecord) -> bool {
    wanted
        .client
        .is_none_or(|client| client == record.client.ip())
        && wanted.vip.is_none_or(|vip| vip == record.vip.ip())
}

fn shown(record: &FlowRecord, pinned: Option<PinReason>) -> Flow {
    let FlowRecord {
        protocol,
        client,
        vip,
        pod,
        identity,
        stage,
        idle_ticks,
        is_reported: _,
    } = *record;
    Flow {
        client,
        vip,
        pod,
        protocol: protocol_name(protocol),
        state: match stage {
            Stage::HalfOpen => FlowState::HalfOpen,
            Stage::Known { client, pod }
                if (client | pod) & flow_state::RST != 0 || client & pod & flow_state::FIN != 0 =>
            {
                FlowState::Closing
            }
            Stage::Known { .. } => FlowState::Established,
        },
        idle_seconds: (u64::from(idle_ticks) << TICK_SHIFT) / 1_000_000_000,
        identity,
        pinned,
    }
}

/// As people write it.
pub(super) fn protocol_name(number: u8) -> String {
    match number {
        protocol::TCP => "TCP".to_owned(),
        protocol::UDP => "UDP".to_owned(),
        other => format!("protocol {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_flow_says_why() {
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (client, vip, pod) = (
            end("192.0.2.1:1"),
            end("198.51.100.1:80"),
            end("10.1.0.1:80"),
        );
        let record = |client, pod, is_reported| FlowRecord {
            protocol: 6,
            client,
            vip,
            pod,
            identity: 1,
            stage: Stage::HalfOpen,
            idle_ticks: 0,
            is_reported,
        };
        let mut pinned = Pinned {
            pods: HashMap::from([(FlowKey::new(6, client, vip).unwrap(), pod)]),
            tracked: BTreeSet::new(),
        };
        let why = |pinned: &Pinned, of| pinned.reason(&of);
        let flow = || record(client, pod, false);
        assert_eq!(why(&pinned, flow()), Some(PinReason::HandedOff));
        let deviates = record(client, pod, true);
        assert_eq!(why(&pinned, deviates), Some(PinReason::Deviation));
        // Another pod has the pin, or another client.
        assert_eq!(why(&pinned, record(client, end("10.1.0.2:80"), true)), None);
        assert_eq!(why(&pinned, record(end("192.0.2.1:2"), pod, true)), None);
        pinned.tracked.insert(vip.ip());
        assert_eq!(why(&pinned, flow()), Some(PinReason::Tracked));
    }

    #[test]
    fn a_flow_is_closing_after_one_reset_or_two_fins() {
        let state = |stage| {
            let address = "192.0.2.1:1".parse().unwrap();
            let record = FlowRecord {
                protocol: 6,
                client: address,
                vip: address,
                pod: address,
                identity: 1,
                stage,
                idle_ticks: 2,
                is_reported: false,
            };
            let flow = shown(&record, None);
            assert_eq!((flow.idle_seconds, flow.protocol.as_str()), (2, "TCP"));
            flow.state
        };
        let known = |client, pod| state(Stage::Known { client, pod });
        assert_eq!(state(Stage::HalfOpen), FlowState::HalfOpen);
        assert_eq!(known(flow_state::FIN, 0), FlowState::Established);
        assert_eq!(known(flow_state::FIN, flow_state::FIN), FlowState::Closing);
        assert_eq!(known(0, flow_state::RST), FlowState::Closing);
    }
}
