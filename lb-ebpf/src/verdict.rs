//! What becomes of a packet, in one machine word: BPF functions return no more.

use crate::abi::DropReason;

/// What becomes of a packet.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict(u64);

/// A [`Verdict`], taken apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// To the host's stack.
    Pass,
    /// Out of the interface that it came in on.
    Transmit,
    /// Out of another interface.
    Redirect(u32),
    /// Dropped, and counted for this reason.
    Drop(DropReason),
}

impl Verdict {
    /// To the host's stack.
    pub const PASS: Self = Self(0);
    /// Out of the interface that it came in on.
    pub const TRANSMIT: Self = Self(1);
    const REDIRECT: u64 = 2;
    const DROP: u64 = 3;
    const TOO_BIG_4: u64 = 6;
    const TOO_BIG_6: u64 = 7;
    /// Not final: a fragment, ICMP, options, or another protocol.
    pub(crate) const UNCOMMON: Self = Self(8);
    /// Not final: UDP to the Geneve port.
    pub(crate) const GENEVE: Self = Self(9);
    /// Not final: for the owner's decision over IPv4, with the arrival in the scratch memory.
    pub(crate) const ARRIVED_4: Self = Self(4);
    /// The same over IPv6.
    pub(crate) const ARRIVED_6: Self = Self(5);

    /// Whether nothing is left to be done for the packet.
    #[inline(always)]
    pub(crate) const fn is_final(self) -> bool {
        self.0 as u32 as u64 <= Self::DROP
    }

    /// Not final: a new flow over IPv4 that nobody serves.
    pub(crate) const REFUSE_4: Self = Self(11);
    /// The same over IPv6.
    pub(crate) const REFUSE_6: Self = Self(12);
    /// Not final: the owner node does not simply know the flow, see [`crate::own`].
    pub(crate) const STRANGER: Self = Self(10);
    /// Not final: other candidates are to be asked.
    pub(crate) const WALK: Self = Self(15);
    /// Not final: its subject is to be found, see [`crate::subject`].
    pub(crate) const UNUSUAL: Self = Self(22);
    /// Not final: its subject is in the scratch memory.
    pub(crate) const FOUND: Self = Self(23);
    /// Not final: it has no subject.
    pub(crate) const OTHER: Self = Self(24);
    /// Not final: the next candidate is to be found.
    pub(crate) const NEXT: Self = Self(20);
    /// Not final: the target, a pod of this node, is to be asked.
    pub(crate) const ASK: Self = Self(21);
    /// Not final: nobody knows the flow.
    pub(crate) const NOBODY: Self = Self(16);
    /// Not final: a new flow for the target.
    pub(crate) const ADMIT: Self = Self(17);
    /// Not final: goes to the target, a pod of this node.
    pub(crate) const DELIVER: Self = Self(18);
    /// Not final: goes to the target, a backend of another node.
    pub(crate) const RELAY: Self = Self(19);
    /// Not final: neighbour discovery.
    pub(crate) const NEIGHBOUR: Self = Self(13);
    /// Not final: UDP to the port of the liveness probe.
    pub(crate) const PROBE: Self = Self(14);

    /// As it is handed from function to function.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.0
    }

    /// The inverse of [`Verdict::to_word`].
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Dropped for a reason.
    #[inline(always)]
    pub const fn drop(reason: DropReason) -> Self {
        Self(Self::DROP | (reason as u64) << 32)
    }

    /// Not final: too big for outer headers; the client is told the MTU.
    #[inline(always)]
    pub(crate) const fn too_big(is_v6: bool, mtu: u16) -> Self {
        Self(
            if is_v6 {
                Self::TOO_BIG_6
            } else {
                Self::TOO_BIG_4
            } | (mtu as u64) << 32,
        )
    }

    /// The MTU to tell, over IPv4 or IPv6.
    #[inline(always)]
    pub(crate) const fn told_mtu(self, is_v6: bool) -> Option<u16> {
        let kind = if is_v6 {
            Self::TOO_BIG_6
        } else {
            Self::TOO_BIG_4
        };
        if self.0 as u32 as u64 == kind {
            Some((self.0 >> 32) as u16)
        } else {
            None
        }
    }

    /// Dropped for the reason with this number.
    #[inline(always)]
    pub(crate) const fn drop_number(number: u32) -> Self {
        Self(Self::DROP | (number as u64) << 32)
    }

    /// Out of the interface with this index; 0: the one that it came in on.
    #[inline(always)]
    pub const fn send(ifindex: u32) -> Self {
        if ifindex == 0 {
            Self::TRANSMIT
        } else {
            Self(Self::REDIRECT | (ifindex as u64) << 32)
        }
    }

    /// Whether the packet is dropped, and the number of the reason.
    #[inline(always)]
    pub const fn drop_reason(self) -> Option<u32> {
        if self.0 as u32 as u64 == Self::DROP {
            Some((self.0 >> 32) as u32)
        } else {
            None
        }
    }

    /// The interface of a redirect.
    #[inline(always)]
    pub const fn redirect(self) -> Option<u32> {
        if self.0 as u32 as u64 == Self::REDIRECT {
            Some((self.0 >> 32) as u32)
        } else {
            None
        }
    }

    /// Taken apart, for the host.
    pub fn action(self) -> Action {
        match (self.drop_reason(), self.redirect()) {
            (Some(reason), _) => Action::Drop(DropReason::ALL[reason as usize]),
            (None, Some(ifindex)) => Action::Redirect(ifindex),
            (None, None) if self == Self::TRANSMIT => Action::Transmit,
            (None, None) => Action::Pass,
        }
    }
}

impl From<DropReason> for Verdict {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self::drop(reason)
    }
}
