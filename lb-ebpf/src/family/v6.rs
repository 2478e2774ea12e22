//! IPv6.

use super::{Family, HOPS, Next, V4, V6, word};
use crate::abi::{HEADER_MAX, OVERHEAD_V6, ServiceKey6, hash_fields};
use crate::checksum;
use crate::decap::Arrival;
use crate::hash;
use crate::own::{Scratch, Work};
use crate::wire::{Addr6, Be16, Be32, Ipv6, Ports, ethertype, protocol};

impl Family for V6 {
    type Addr = Addr6;
    type ServiceKey = ServiceKey6;
    type Header = Ipv6;

    const HEADER_LEN: usize = 40;
    const SRC_AT: usize = 8;
    const DST_AT: usize = 24;
    const ETHERTYPE: Be16 = ethertype::IPV6;
    const ICMP: u8 = protocol::ICMP6;
    const IS_V6: bool = true;
    const OVERHEAD: u16 = OVERHEAD_V6;

    #[inline(always)]
    fn is_valid(header: &Ipv6) -> bool {
        header.first.to_bytes()[0] >> 4 == 6
    }

    #[inline(always)]
    fn next(header: &Ipv6) -> Next {
        match header.next {
            protocol::FRAGMENT => Next::Fragment,
            protocol::HOP_BY_HOP | protocol::ROUTING | protocol::DESTINATION_OPTIONS => {
                Next::Options
            }
            _ => Next::Whole,
        }
    }

    #[inline(always)]
    fn src(header: &Ipv6) -> Addr6 {
        header.src
    }

    #[inline(always)]
    fn dst(header: &Ipv6) -> Addr6 {
        header.dst
    }

    #[inline(always)]
    fn proto(header: &Ipv6) -> u8 {
        header.next
    }

    #[inline(always)]
    fn total_len(header: &Ipv6) -> usize {
        header.payload_len.get() as usize + Self::HEADER_LEN
    }

    #[inline(always)]
    fn traffic_class(header: &Ipv6) -> u8 {
        (header.first.get() >> 20) as u8
    }

    #[inline(always)]
    fn is_martian(src: Addr6) -> bool {
        let Addr6([a, b, c, d]) = src;
        let upper_zero = a.raw() | b.raw() == 0;
        // ff00::/8; ::ffff:0:0/96; ::1 and :: (RFC 4291, sections 2.5.2, 2.5.3, 2.5.5.2, 2.7).
        a.to_bytes()[0] == 0xff
            || (upper_zero && c.raw() == const { Be32::new(0xffff).raw() })
            || (upper_zero && c.raw() == 0 && d.get() <= 1)
    }

    #[inline(always)]
    fn work(scratch: &mut Scratch) -> (&mut Arrival, &mut Work<Self::Addr>) {
        (&mut scratch.arrival, &mut scratch.v6)
    }

    #[inline(always)]
    fn service_key(addr: Addr6, port: Be16, proto: u8) -> ServiceKey6 {
        ServiceKey6 {
            addr,
            port,
            proto,
            pad: 0,
        }
    }

    #[inline(always)]
    fn mapped(addr: Addr6) -> Addr6 {
        addr
    }

    #[inline(always)]
    fn from_mapped(addr: Addr6) -> Addr6 {
        addr
    }

    #[inline(always)]
    fn addr_in(template: &[u8; HEADER_MAX], at: usize) -> Addr6 {
        Addr6([
            V4::addr_in(template, at),
            V4::addr_in(template, at + 4),
            V4::addr_in(template, at + 8),
            V4::addr_in(template, at + 12),
        ])
    }

    #[inline(always)]
    fn delta(old: Addr6, new: Addr6) -> u64 {
        let (Addr6([a, b, c, d]), Addr6([e, f, g, h])) = (old, new);
        checksum::delta(a.raw(), e.raw())
            + checksum::delta(b.raw(), f.raw())
            + checksum::delta(c.raw(), g.raw())
            + checksum::delta(d.raw(), h.raw())
    }

    #[inline(always)]
    fn hash(key: &hash::Key, src: Addr6, dst: Addr6, ports: Ports, proto: u8, fields: u32) -> u64 {
        let (Addr6([a, b, c, d]), Addr6([e, f, g, h])) = (src, dst);
        let mut sum = hash::start(key);
        sum = hash::add(sum, key, 0, a.raw());
        sum = hash::add(sum, key, 1, b.raw());
        sum = hash::add(sum, key, 2, c.raw());
        sum = hash::add(sum, key, 3, d.raw());
        sum = hash::add(sum, key, 4, e.raw());
        sum = hash::add(sum, key, 5, f.raw());
        sum = hash::add(sum, key, 6, g.raw());
        sum = hash::add(sum, key, 7, h.raw());
        if fields == hash_fields::FIVE_TUPLE {
            sum = hash::add(sum, key, 8, word(ports));
            sum = hash::add(sum, key, 9, u32::from(proto));
        }
        hash::finish(sum)
    }

    #[inline(always)]
    fn with_dst(header: Ipv6, new: Addr6) -> Ipv6 {
        Ipv6 { dst: new, ..header }
    }

    #[inline(always)]
    fn sum(Addr6([a, b, c, d]): Addr6) -> u64 {
        u64::from(a.raw()) + u64::from(b.raw()) + u64::from(c.raw()) + u64::from(d.raw())
    }

    #[inline(always)]
    fn header(proto: u8, payload_len: u16, src: Addr6, dst: Addr6) -> Ipv6 {
        Ipv6 {
            first: Be32::new(0x6000_0000),
            payload_len: Be16::new(payload_len),
            next: proto,
            hops: HOPS,
            src,
            dst,
        }
    }

    #[inline(always)]
    fn with_traffic_class(header: Ipv6, class: u8) -> Ipv6 {
        let first = header.first.get() & !(0xff << 20) | u32::from(class) << 20;
        Ipv6 {
            first: Be32::new(first),
            ..header
        }
    }
}
