//! Flows that tables alone do not find: pinned by their owners, sent to substitutes, reported; nodes that are suspected, and
//! second opinions. One file: its cases are those of `golden/pins.txt`, in that order.

use lb_ebpf::abi::{
    Backend, DropReason, Limited, Pin, SLOT_DEVIATES, Stat, backend_flag, config_flag, mark,
    service_flag,
};

use super::{Case, egress, sent, xdp};
use crate::golden::packet::{self, ACK, Encap, Named, SYN, Tcp, frame, frame_back};
use crate::golden::scene::{
    CLIENT_PORT, HTTP, L1, L2, NOW_NS, Net, POD_PORT, Pod, Proto, R2, R3, R4, SECOND, Scene,
    backend, mac, vip_key4, vip_key6,
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for net in Net::BOTH {
        at_the_balancer(&mut cases, net);
        outlived(&mut cases, net);
        walk(&mut cases, net);
        deviations(&mut cases, net);
        suspected(&mut cases, net);
        reported(&mut cases, net);
        opinions(&mut cases, net);
    }
    cases
}

fn segment(flags: u8) -> Tcp {
    Tcp::new(CLIENT_PORT, HTTP, flags)
}

fn delivered(net: Net, pod: Pod, flags: u8) -> Vec<u8> {
    Tcp {
        to: POD_PORT,
        ..segment(flags)
    }
    .frame(&net.ip_to(pod))
}

fn identities(pods: &[Pod]) -> Vec<u32> {
    pods.iter().map(|pod| pod.identity()).collect()
}

/// A segment from node 8 for L1.
fn arrives(net: Net, asked: &[Pod], mark: u8, flags: u8) -> Vec<u8> {
    let encap = Encap {
        asked: identities(asked),
        mark,
        ..L1.sent_by(net, 8)
    };
    encap.around(&segment(flags).packet(&net.ip()))
}

/// A segment as this node sends it.
fn passed(scene: &Scene, net: Net, to: Pod, asked: &[Pod], mark: u8, flags: u8) -> Vec<u8> {
    let encap = Encap {
        asked: identities(asked),
        mark,
        ..sent(scene, to, net, net, Proto::Tcp)
    };
    encap.around(&segment(flags).packet(&net.ip()))
}

/// Sets a flag of all Services.
fn flagged(scene: Scene, what: &str, flag: u32) -> Scene {
    scene.but(what, |tables| {
        let four = tables.v4.services.values_mut();
        for entry in four.chain(tables.v6.services.values_mut()) {
            entry.flags |= flag;
        }
    })
}

/// The client's flow is pinned.
fn pinned(scene: Scene, by: &[Pod]) -> Scene {
    let names: Vec<_> = by.iter().map(Pod::to_string).collect();
    let what = format!("pinned by {}", names.join(" and "));
    flagged(scene, &what, service_flag::PINS).but("of many", |tables| {
        let pin = |net: Net| {
            let mut pin = Pin::default();
            for (place, pod) in pin.backends.iter_mut().zip(by) {
                *place = pod.backend(net);
            }
            pin
        };
        let (four, six) = (pin(Net::V4), pin(Net::V6));
        tables.v4.pins.insert(vip_key4(Proto::Tcp), four);
        tables.v6.pins.insert(vip_key6(Proto::Tcp), six);
    })
}

/// The current slot's agreed occupant gets no first packets; a substitute does.
fn deviates(scene: Scene, substitute: Pod) -> Scene {
    scene.but(&format!("deviates to {substitute}"), |tables| {
        for (slot, net) in [(0, Net::V4), (3, Net::V6)] {
            let slot = &mut tables.slots[slot];
            let set = tables.sets.get_mut(&slot.set).expect("made with the slot");
            set.current = slot.first;
            set.substitute = substitute.backend(net);
            slot.first = substitute.backend(net);
            slot.set |= SLOT_DEVIATES;
        }
    })
}

/// The node of a pod is suspected.
fn suspects(scene: Scene, pod: Pod) -> Scene {
    scene.but(&format!("the node of {pod} is suspected"), |tables| {
        for net in Net::BOTH {
            let backend = tables.backends.get_mut(&pod.backend(net)).expect("there");
            backend.flags |= backend_flag::SUSPECTED;
        }
    })
}

fn stale(scene: Scene) -> Scene {
    scene.but("its agent's stamp is two seconds old", |tables| {
        tables.stamp.stamped_ns = NOW_NS - 2 * SECOND;
    })
}

fn at_the_balancer(cases: &mut Vec<Case>, net: Net) {
    let scene = || pinned(Scene::current(R2, &[]), &[R3]);
    for (what, flags, mark) in [("syn", SYN, mark::PINNED), ("segment", ACK, 0)] {
        cases.push(
            xdp(
                format!("{what} of a pinned flow, {net:?}"),
                scene(),
                frame(&segment(flags).packet(&net.ip())),
            )
            .transmits(passed(&scene(), net, R3, &[], mark, flags))
            .counts(&[Stat::AlongPin]),
        );
    }
    let another = Tcp {
        from: CLIENT_PORT + 1,
        ..segment(SYN)
    };
    let scene_of_none = || {
        flagged(
            Scene::current(L1, &[]),
            "some flow is pinned",
            service_flag::PINS,
        )
    };
    cases.push(
        xdp(
            format!("syn of another flow than the pinned one, {net:?}"),
            scene_of_none(),
            frame(&another.packet(&net.ip())),
        )
        .becomes(
            Tcp {
                to: POD_PORT,
                ..another.clone()
            }
            .frame(&net.ip_to(L1)),
        )
        .counts(&[Stat::Admitted, Stat::Known]),
    );
    let here = || pinned(Scene::current(R2, &[]).flow(L1, Proto::Tcp), &[L1, R3]);
    cases.push(
        xdp(
            format!("segment of a flow that a pod here has pinned, {net:?}"),
            here(),
            frame(&segment(ACK).packet(&net.ip())),
        )
        .becomes(delivered(net, L1, ACK))
        .counts(&[Stat::AlongPin, Stat::Known]),
    );
}

/// A first packet along a pin whose flow has ended.
fn outlived(cases: &mut Vec<Case>, net: Net) {
    let arriving = arrives(net, &[], mark::PINNED, SYN);
    cases.push(
        xdp(
            format!("syn along a pin, the flow is known, {net:?}"),
            Scene::current(R2, &[]).flow(L1, Proto::Tcp),
            arriving.clone(),
        )
        .becomes(delivered(net, L1, SYN))
        .counts(&[Stat::Known]),
    );
    let elsewhere = || Scene::current(R2, &[]);
    cases.push(
        xdp(
            format!("syn along an outlived pin, passed on, {net:?}"),
            elsewhere(),
            arriving.clone(),
        )
        .transmits(passed(&elsewhere(), net, R2, &[L1], 0, SYN))
        .counts(&[Stat::DecidedAfresh, Stat::Relayed]),
    );
    let closing = || Scene::current(R2, &[]).flow_with(L1, Proto::Tcp, 1, 1);
    cases.push(
        xdp(
            format!("syn along a pin whose flow is closing, passed on, {net:?}"),
            closing(),
            arriving.clone(),
        )
        .transmits(passed(&closing(), net, R2, &[L1], 0, SYN))
        .counts(&[Stat::DecidedAfresh, Stat::Relayed]),
    );
    for (what, current) in [("to the same pod", L1), ("to another pod here", L2)] {
        cases.push(
            xdp(
                format!("syn along an outlived pin, {what}, {net:?}"),
                Scene::current(current, &[]),
                arriving.clone(),
            )
            .becomes(delivered(net, current, SYN))
            .counts(&[Stat::DecidedAfresh, Stat::Admitted, Stat::Known]),
        );
    }
}

/// A node's pins are asked before its candidates.
fn walk(cases: &mut Vec<Case>, net: Net) {
    let scene = || pinned(Scene::current(L1, &[R2]), &[R4, R3]);
    for (what, before, next) in [
        ("newest first", &[][..], R4),
        ("then the other", &[R4][..], R3),
        ("then older occupants", &[R4, R3][..], R2),
    ] {
        let asked = [before, &[L1]].concat();
        cases.push(
            xdp(
                format!("unknown flow, its pins are asked, {what}, {net:?}"),
                scene(),
                arrives(net, before, 0, ACK),
            )
            .transmits(passed(&scene(), net, next, &asked, 0, ACK))
            .counts(&[Stat::Relayed]),
        );
    }
}

fn deviations(cases: &mut Vec<Case>, net: Net) {
    let scene = || deviates(Scene::current(R2, &[]), R3);
    cases.push(
        xdp(
            format!("syn for a substitute on a node that is not fresh, {net:?}"),
            stale(scene()),
            frame(&segment(SYN).packet(&net.ip())),
        )
        .drops(DropReason::DeviationNotFresh),
    );
    cases.push(
        xdp(
            format!("segment while the slot deviates on a node that is not fresh, {net:?}"),
            stale(scene()),
            frame(&segment(ACK).packet(&net.ip())),
        )
        .transmits(passed(&scene(), net, R2, &[], 0, ACK)),
    );
    let here = || deviates(Scene::current(R2, &[]), L1);
    cases.push(
        xdp(
            format!("syn for a substitute here, {net:?}"),
            here(),
            frame(&segment(SYN).packet(&net.ip())),
        )
        .becomes(delivered(net, L1, SYN))
        .counts(&[Stat::Deviated, Stat::Admitted, Stat::Known]),
    );
    // Nobody knows the datagram's flow: it is a new one, and those go to the substitute.
    let datagram = Proto::Udp.packet(&net.ip(), Proto::Udp.port());
    let scene = || deviates(Scene::current(L2, &[]), R3);
    let out = Encap {
        asked: identities(&[L2, R3]),
        mark: mark::ADMIT | mark::DEVIATION,
        ..sent(&scene(), R3, net, net, Proto::Udp)
    };
    let arriving = Encap {
        asked: identities(&[R3]),
        ..L2.sent_by(net, 8)
    };
    let out = Encap {
        asked: identities(&[R3, L2]),
        ..out
    };
    cases.push(
        xdp(
            format!("datagram that nobody knows while the slot deviates, {net:?}"),
            scene(),
            arriving.around(&datagram),
        )
        .transmits(out.around(&datagram))
        .counts(&[Stat::Relayed]),
    );
}

fn suspected(cases: &mut Vec<Case>, net: Net) {
    let scene = || suspects(deviates(Scene::current(R2, &[R4]), R3), R2);
    cases.push(
        xdp(
            format!("segment whose agreed occupant's node is suspected, {net:?}"),
            scene(),
            frame(&segment(ACK).packet(&net.ip())),
        )
        .transmits(passed(&scene(), net, R4, &[], 0, ACK)),
    );
    let all = || suspects(suspects(scene(), R4), R3);
    cases.push(
        xdp(
            format!("segment when all nodes are suspected, {net:?}"),
            all(),
            frame(&segment(ACK).packet(&net.ip())),
        )
        .transmits(passed(&all(), net, R2, &[], 0, ACK)),
    );
    let closing = || {
        suspects(
            Scene::current(L1, &[R2]).flow_with(L1, Proto::Tcp, 1, 1),
            R2,
        )
    };
    cases.push(
        xdp(
            format!("closing flow is not passed on to a suspected node, {net:?}"),
            closing(),
            arrives(net, &[], 0, ACK),
        )
        .becomes(delivered(net, L1, ACK))
        .counts(&[Stat::Known]),
    );
    let walk = || suspects(Scene::current(L1, &[R2, R3]), R2);
    for (before, next) in [(&[][..], R3), (&[R3][..], R2)] {
        let asked = [before, &[L1]].concat();
        cases.push(
            xdp(
                format!(
                    "unknown flow, {} asked, suspected nodes last, {net:?}",
                    before.len()
                ),
                walk(),
                arrives(net, before, 0, ACK),
            )
            .transmits(passed(&walk(), net, next, &asked, 0, ACK))
            .counts(&[Stat::Relayed]),
        );
    }
}

/// What the agent is told of.
fn reported(cases: &mut Vec<Case>, net: Net) {
    let tracked = || {
        flagged(
            Scene::current(R2, &[]),
            "all flows are tracked",
            service_flag::TRACK_ALL,
        )
    };
    cases.push(
        xdp(
            format!("syn of a service whose flows are all pinned, {net:?}"),
            tracked(),
            frame(&segment(SYN).packet(&net.ip())),
        )
        .transmits(passed(&tracked(), net, R2, &[], mark::TRACK, SYN)),
    );
    for (what, marks) in [
        ("deviation", mark::DEVIATION),
        ("tracked flow", mark::TRACK),
    ] {
        cases.push(
            xdp(
                format!("syn of a {what} at its owner, {net:?}"),
                Scene::current(L1, &[]),
                arrives(net, &[], marks, SYN),
            )
            .becomes(delivered(net, L1, SYN))
            .counts(&[Stat::Admitted, Stat::Known]),
        );
        let half_open = || {
            Scene::current(L1, &[])
                .half_open(L1, Proto::Tcp, Some(5000))
                .but(&format!("marked {marks}"), |tables| {
                    for entry in tables.v4.half_open.borrow_mut().values_mut() {
                        entry.mark = marks;
                    }
                    for entry in tables.v6.half_open.borrow_mut().values_mut() {
                        entry.mark = marks;
                    }
                })
        };
        cases.push(
            xdp(
                format!("{what} confirmed by its client, {net:?}"),
                half_open(),
                arrives(net, &[], 0, ACK),
            )
            .becomes(delivered(net, L1, ACK))
            .counts(&[Stat::Promoted, Stat::Reported, Stat::Known]),
        );
        let answer = Tcp::new(POD_PORT, CLIENT_PORT, ACK);
        let out = Tcp {
            from: HTTP,
            ..answer.clone()
        };
        cases.push(
            egress(
                format!("{what} confirmed by its pod, {net:?}"),
                half_open(),
                frame_back(&answer.packet(&net.ip_from(L1))),
            )
            .becomes(frame_back(&out.packet(&net.ip_back())))
            .counts(&[Stat::Promoted, Stat::Reported, Stat::Returned]),
        );
        answered(cases, net, what, marks);
    }
    cases.push(
        xdp(
            format!("syn for an older occupant at its node, {net:?}"),
            Scene::current(R2, &[L1]),
            arrives(net, &[], 0, SYN),
        )
        .becomes(delivered(net, L1, SYN))
        .counts(&[Stat::Admitted, Stat::Known]),
    );
    cases.push(
        xdp(
            format!("syn for the agreed occupant of a slot that deviates here, {net:?}"),
            deviates(Scene::current(L1, &[]), R2),
            arrives(net, &[], 0, SYN),
        )
        .becomes(delivered(net, L1, SYN))
        .counts(&[Stat::Admitted, Stat::Known]),
    );
}

/// The pod's answer to a marked first packet is reported, once and at a limited rate.
fn answered(cases: &mut Vec<Case>, net: Net, what: &str, marks: u8) {
    let half_open = |isn: Option<u32>, marks: u8| {
        Scene::current(L1, &[]).half_open(L1, Proto::Tcp, isn).but(
            &format!("marked {marks}"),
            |tables| {
                for entry in tables.v4.half_open.borrow_mut().values_mut() {
                    entry.mark = marks;
                }
                for entry in tables.v6.half_open.borrow_mut().values_mut() {
                    entry.mark = marks;
                }
            },
        )
    };
    let limited = half_open(None, marks).but("reports at their limit", |tables| {
        tables.left[Limited::Report as usize].set(0);
        tables.config.half_open_reports_per_second = 0;
    });
    let answer = Tcp {
        seq: 5000,
        ..Tcp::new(POD_PORT, CLIENT_PORT, SYN | ACK)
    };
    let out = Tcp {
        from: HTTP,
        ..answer.clone()
    };
    let first: &[Stat] = &[Stat::Reported, Stat::Returned];
    for (how, scene, counts) in [
        ("", half_open(None, marks), first),
        (" sent again", half_open(Some(5000), marks), &first[1..]),
        (" above the limit", limited, &first[1..]),
        (
            " that is pinned",
            half_open(None, marks | mark::PINNED),
            &first[1..],
        ),
    ] {
        cases.push(
            egress(
                format!("answer of a {what}{how}, {net:?}"),
                scene,
                frame_back(&answer.packet(&net.ip_from(L1))),
            )
            .becomes(frame_back(&out.packet(&net.ip_back())))
            .counts(counts),
        );
    }
}

/// The balancer on node 4, which stands for no pod.
fn opinion(net: Net) -> Encap {
    let address = match net {
        Net::V4 => packet::v4(0, 0, 0, 0),
        Net::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    Encap {
        macs: (mac(4), packet::NODE),
        pod: Named {
            address,
            port: 0,
            identity: 0,
        },
        to: net.node(4),
        ..R4.sent_by(net, 1)
    }
}

/// Ids of backends that stand for node 4.
fn with_opinions(scene: Scene) -> Scene {
    scene.but("node 4 is asked for opinions", |tables| {
        for (at, net) in [(0, Net::V4), (1, Net::V6)] {
            let id = 60 + at as u32;
            let mut value: Backend = backend(R4, net, net);
            let pod = match net {
                Net::V4 => 58..58 + 4 + 4,
                Net::V6 => 78..78 + 16 + 4,
            };
            // Port, address and identity of the pod.
            value.header[pod.start - 2..pod.end].fill(0);
            (value.identity, value.port) = (0, lb_ebpf::wire::Be16::new(0));
            tables.backends.insert(id, value);
            tables.config.opinions[at] = id;
        }
    })
}

fn opinions(cases: &mut Vec<Case>, net: Net) {
    let inner = segment(ACK).packet(&net.ip());
    let scene = || with_opinions(Scene::current(L1, &[]));
    let out = |scene: &Scene| {
        let encap = Encap {
            asked: identities(&[L1]),
            mark: mark::SECOND_OPINION,
            source_port: sent(scene, R4, net, net, Proto::Tcp).source_port,
            ..opinion(net)
        };
        encap.around(&inner)
    };
    let untold = |scene: Scene| {
        scene.but("streams are missing", |tables| {
            let four = tables.v4.services.values_mut();
            for entry in four.chain(tables.v6.services.values_mut()) {
                entry.flags &= !service_flag::STREAMS_UP;
            }
        })
    };
    let no_pins = |scene: Scene| {
        scene.but("the node holds no pins", |tables| {
            tables.config.flags |= config_flag::NO_PINS;
        })
    };
    for (what, scene) in [
        ("on a node that is not fresh", stale(scene())),
        ("on a node that misses streams", untold(scene())),
        ("on a node without pins", no_pins(scene())),
    ] {
        let expected = out(&scene);
        cases.push(
            xdp(
                format!("second opinion {what}, {net:?}"),
                scene,
                arrives(net, &[], 0, ACK),
            )
            .transmits(expected)
            .counts(&[Stat::SecondOpinion, Stat::Relayed]),
        );
    }
    cases.push(
        xdp(
            format!("no second opinion twice, {net:?}"),
            stale(scene()),
            arrives(net, &[], mark::SECOND_OPINION, ACK),
        )
        .drops(DropReason::NotFresh),
    );
    cases.push(
        xdp(
            format!("held back by a node that misses nothing, {net:?}"),
            scene(),
            arrives(net, &[], 0, ACK),
        )
        .drops(DropReason::HeldBack),
    );
    // At the balancer that is asked: it goes on by its own tables and pins.
    let asked = Encap {
        to: net.node(1),
        macs: (packet::NODE, packet::ROUTER),
        from: net.node(8),
        mark: mark::SECOND_OPINION,
        asked: identities(&[R2]),
        ..opinion(net)
    };
    let scene = || pinned(Scene::current(R2, &[]), &[R3]);
    cases.push(
        xdp(
            format!("asked for an opinion, the flow is pinned, {net:?}"),
            scene(),
            asked.around(&inner),
        )
        .transmits(passed(&scene(), net, R3, &[R2], mark::SECOND_OPINION, ACK))
        .counts(&[Stat::Relayed]),
    );
    cases.push(
        xdp(
            format!("asked for an opinion, nobody knows the flow, {net:?}"),
            Scene::current(R2, &[]),
            asked.around(&inner),
        )
        .drops(DropReason::HeldBack),
    );
}
