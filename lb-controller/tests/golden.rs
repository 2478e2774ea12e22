//! Golden packets in the kernel: the cases of `lb-ebpf/tests/golden` through `BPF_PROG_TEST_RUN`, with the tables written by
//! the agent's own map code. Verdict, bytes, counters and changes of flow state have to be as in `lb-ebpf/golden/*.txt`,
//! which the host's run agrees with too, and every packet out has to please tshark. Needs root; says so and passes without.

#[path = "../../lb-ebpf/tests/golden/mod.rs"]
mod golden;
#[path = "support/kernel.rs"]
mod kernel;
#[path = "support/tshark.rs"]
mod tshark;

use std::net::IpAddr;
use std::path::PathBuf;

use golden::scene::{self, Net, PODS, Pod};
use golden::{cases, host, text};
use lb_controller::model::secret::encap_secret;
use lb_controller::model::template::{NextHop, NodeAddresses, Place, PodPort, Sender, backend};

fn file(topic: &str) -> String {
    let dir = env!("CARGO_MANIFEST_DIR");
    let path: PathBuf = [dir, "..", "lb-ebpf", "golden", &format!("{topic}.txt")]
        .iter()
        .collect();
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_kernel_agrees_byte_for_byte() {
    let Some(mut kernel) = kernel::Kernel::new() else {
        eprintln!("skipped: golden packets in the kernel need root, to load programs");
        return;
    };
    let mut faults = Vec::new();
    let mut packets = Vec::new();
    for (topic, cases) in cases::all() {
        let golden = file(topic);
        let golden: Vec<&str> = golden.split("\n\n").map(str::trim_end).collect();
        for case in &cases {
            let outcome = kernel.run(case);
            if let Some(fault) = case.fault(&outcome) {
                faults.push(format!("{}: {fault}", case.name));
            }
            assert_eq!(host::run(case), outcome, "host and kernel, {}", case.name);
            let text = text::render(case, &outcome);
            if !golden.contains(&text.trim_end()) {
                faults.push(format!(
                    "golden/{topic}.txt says otherwise than the kernel:\n{text}"
                ));
            }
            if outcome.verdict != "drop" && outcome.output != case.input {
                packets.push(outcome.output);
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    tshark::assert_clean("golden packets", &packets);
}

/// The scenes write backends by their own hand, since lb-ebpf cannot use this crate.
#[test]
fn backends_of_the_scenes_are_the_controllers() {
    let addresses = |number| {
        let both = |net: Net| net.node(number);
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (both(Net::V4), both(Net::V6)) else {
            panic!("one of each family");
        };
        (v4, v6)
    };
    for pod in PODS {
        for net in Net::BOTH {
            for outer in Net::BOTH {
                let only = |number, outer| {
                    let (v4, v6) = addresses(number);
                    NodeAddresses {
                        v4: (outer == Net::V4).then_some(v4),
                        v6: (outer == Net::V6).then_some(v6),
                    }
                };
                let hop = NextHop {
                    ifindex: 0,
                    src: golden::packet::NODE,
                    dst: scene::mac(pod.1),
                    mtu: 1500,
                };
                let place = if pod.is_local() {
                    Place::Local
                } else {
                    Place::Remote {
                        node: only(pod.1, outer),
                        hop4: Some(hop),
                        hop6: Some(hop),
                    }
                };
                let sender = Sender {
                    node: if pod.is_local() {
                        only(1, Net::V4)
                    } else {
                        only(1, outer)
                    },
                    secret: encap_secret(scene::SECRET),
                    geneve_port: 6081,
                };
                assert_eq!(
                    scene::backend(pod, net, outer),
                    backend(&pod_port(pod, net), &place, &sender),
                    "{pod} {net:?} in {outer:?}"
                );
            }
        }
    }
}

fn pod_port(pod: Pod, net: Net) -> PodPort {
    PodPort {
        address: pod.address(net),
        port: scene::POD_PORT,
        identity: pod.identity(),
    }
}
