//! Packets as the balancer makes them for the owner.

use anyhow::ensure;
use lb_ebpf::abi::{POD_ADDRESS_V4, POD_ADDRESS_V6};

use super::cases::{self, Encapsulated, Target, XDP_TX};
use super::frames::{Clients, FIRST, Kind, MIDDLE};
use super::kernel::{Hook, Run};
use super::script::{self, Script};
use super::{Bench, MANY};

impl Bench {
    /// Lets the balancer make the packets that the owner gets. All clients are sent to the pod of the first.
    pub(super) fn encapsulated(&mut self, kind: Kind) -> anyhow::Result<Encapsulated> {
        let (hot, pins) = (MANY.hot(), MANY.hot_pins());
        let known = self.encapsulate(kind, Clients::Known, hot, MIDDLE)?;
        let mut stranger = self.encapsulate(kind, Clients::Strangers, hot, MIDDLE)?;
        let mut first = self.encapsulate(kind, Clients::Newcomers, hot, FIRST)?;
        let mut pinned = self.encapsulate(kind, Clients::Strangers, pins, MIDDLE)?;
        // What names the pod: its address, identity and the secret after it are at the end of the headers.
        let (from, len) = if kind.is_v6() {
            (POD_ADDRESS_V6, 16 + 4)
        } else {
            (POD_ADDRESS_V4, 4 + 4)
        };
        for other in [&mut stranger, &mut first, &mut pinned] {
            other[from..from + len].copy_from_slice(&known[from..from + len]);
        }
        let identity = &known[from + len - 4..from + len];
        let pod = u32::from_be_bytes(identity.try_into()?);
        Ok(Encapsulated {
            kind,
            known,
            stranger,
            first,
            pinned,
            pod,
        })
    }

    fn encapsulate(
        &mut self,
        kind: Kind,
        clients: Clients,
        service: u32,
        flags: u8,
    ) -> anyhow::Result<Vec<u8>> {
        let packet = cases::request(kind, clients, service, flags, cases::whole(kind));
        // Nothing is rewritten: the packet is given whole.
        let script = Script {
            counter: 0,
            flows_mask: 0,
            length: packet.len() as u32,
            chunks: 0,
            fields: [script::Field::default(); script::FIELDS],
            head: [0; script::HEAD_MAX / 8],
        };
        // Fields that are not to change are written with what is there.
        let same = u16::from_be_bytes([packet[0], packet[1]]);
        let fields = script.fields.map(|field| script::Field {
            base: u32::from(same),
            ..field
        });
        self.aim(Target::BalancerMany, Hook::Xdp)?;
        self.driver.set_script(&Script { fields, ..script })?;
        let done = self.driver.run(&Run {
            hook: Hook::Xdp,
            packet: &packet,
            repeat: 1,
        })?;
        ensure!(
            done.verdict == XDP_TX,
            "the balancer answered {} to a client's packet",
            done.verdict
        );
        Ok(done.packet)
    }
}
