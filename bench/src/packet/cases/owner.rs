//! The cases at the owner node: packets as the balancer encapsulates them, and replies.

use lb_ebpf::abi::Stat;

use super::{
    Case, Counted, Expected, FLOWS, Places, Target, XDP_PASS, XDP_TX, outer, script, short,
};
use crate::packet::frames::{
    BALANCER, CLIENT_PORT, Clients, Ends, Kind, MIDDLE, POD_PORT, frame, pod4, pod6,
};
use crate::packet::kernel::Hook;
use crate::packet::tables::PINNED_FLOWS;

/// `TC_ACT_UNSPEC`: the next program decides.
const TC_UNSPEC: u32 = u32::MAX;

/// An encapsulated frame as the balancer made it, and what the owner is to do with it.
pub(in crate::packet) struct Encapsulated {
    pub(in crate::packet) kind: Kind,
    pub(in crate::packet) known: Vec<u8>,
    pub(in crate::packet) stranger: Vec<u8>,
    pub(in crate::packet) first: Vec<u8>,
    /// A stranger's to the Service that has pins.
    pub(in crate::packet) pinned: Vec<u8>,
    /// Backend id of the pod.
    pub(in crate::packet) pod: u32,
}

/// All cases at the owner node.
pub(in crate::packet) fn at_the_owner(made: &Encapsulated) -> Vec<Case> {
    let mut cases = Vec::new();
    let kind = made.kind;
    let family = if kind.is_v6() { 6 } else { 4 };
    let mut add =
        |name: String, packet: &[u8], flows, (verdict, stats, grows): (u32, &[Stat], isize)| {
            let inner = 14 + outer(kind).cast_unsigned();
            cases.push(Case {
                name,
                hook: Hook::Xdp,
                target: Target::Owner,
                script: script(packet, flows, &Places::of_request(kind, inner)),
                packet: packet.to_vec(),
                expected: Expected {
                    verdict,
                    counted: stats.iter().copied().map(Counted::As).collect(),
                    grows,
                },
                beside: if verdict == XDP_TX {
                    "packet/floor/xdp_tx"
                } else {
                    "packet/floor/xdp_pass"
                },
            });
        };
    let off = -outer(kind);
    for (label, flows) in FLOWS {
        let name = format!("packet/own{family}/flows={label}");
        add(
            name,
            &made.known,
            flows,
            (XDP_PASS, &[Stat::Known][..], off),
        );
    }
    // Another client each time. The one that is admitted is known by the time that it is delivered.
    let admit: &[Stat] = &[Stat::Known, Stat::Admitted];
    add(
        format!("packet/own{family}-syn"),
        &made.first,
        1 << 20,
        (XDP_PASS, admit, off),
    );
    // One more candidate is in the list of those asked.
    let relay = (XDP_TX, &[Stat::Relayed][..], 4);
    add(
        format!("packet/relay{family}"),
        &made.stranger,
        1 << 16,
        relay,
    );
    // No candidate but the one that has pinned the flow.
    add(
        format!("packet/relay{family}-pinned"),
        &made.pinned,
        PINNED_FLOWS,
        relay,
    );
    for (label, flows) in FLOWS {
        let packet = reply(kind, made.pod);
        cases.push(Case {
            name: format!("packet/return{family}/flows={label}"),
            hook: Hook::Tc,
            target: Target::Owner,
            script: script(&packet, flows, &Places::of_reply(kind)),
            packet,
            expected: Expected {
                verdict: TC_UNSPEC,
                counted: vec![Counted::As(Stat::Returned)],
                grows: 0,
            },
            beside: "packet/floor/tc",
        });
    }
    cases
}

/// A frame from a pod to a client.
fn reply(kind: Kind, pod: u32) -> Vec<u8> {
    let ends = if kind.is_v6() {
        Ends {
            src: pod6(pod),
            dst: Clients::Known.v6(0),
            src_port: POD_PORT,
            dst_port: CLIENT_PORT,
        }
    } else {
        Ends::v4(pod4(pod), POD_PORT, Clients::Known.v4(0), CLIENT_PORT)
    };
    frame(kind, BALANCER, &ends, MIDDLE, short(kind))
}
