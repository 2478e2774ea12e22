//! IPv4.

use super::{Family, HOPS, Next, V4, word};
use crate::abi::{HEADER_MAX, OVERHEAD_V4, ServiceKey4, hash_fields};
use crate::checksum;
use crate::decap::Arrival;
use crate::hash;
use crate::own::{Scratch, Work};
use crate::wire::{Addr6, Be16, Be32, Ipv4, Ports, ethertype, protocol};

impl Family for V4 {
    type Addr = Be32;
    type ServiceKey = ServiceKey4;
    type Header = Ipv4;

    const HEADER_LEN: usize = 20;
    const SRC_AT: usize = 12;
    const DST_AT: usize = 16;
    const ETHERTYPE: Be16 = ethertype::IPV4;
    const ICMP: u8 = protocol::ICMP;
    const IS_V6: bool = false;
    const OVERHEAD: u16 = OVERHEAD_V4;

    #[inline(always)]
    fn is_valid(header: &Ipv4) -> bool {
        header.version_ihl >> 4 == 4 && header.version_ihl & 0xf >= 5
    }

    #[inline(always)]
    fn next(header: &Ipv4) -> Next {
        if header.version_ihl != 0x45 {
            Next::Options
        } else if header.fragment.raw() & const { Be16::new(0x3fff).raw() } != 0 {
            Next::Fragment
        } else {
            Next::Whole
        }
    }

    #[inline(always)]
    fn src(header: &Ipv4) -> Be32 {
        header.src
    }

    #[inline(always)]
    fn dst(header: &Ipv4) -> Be32 {
        header.dst
    }

    #[inline(always)]
    fn proto(header: &Ipv4) -> u8 {
        header.protocol
    }

    #[inline(always)]
    fn total_len(header: &Ipv4) -> usize {
        header.total_len.get() as usize
    }

    #[inline(always)]
    fn traffic_class(header: &Ipv4) -> u8 {
        header.tos
    }

    #[inline(always)]
    fn is_martian(src: Be32) -> bool {
        // 127/8, 0/8, and from 224/4 up: RFC 1122, section 3.2.1.3.
        let first = src.to_bytes()[0];
        first == 0 || first == 127 || first >= 224
    }

    #[inline(always)]
    fn work(scratch: &mut Scratch) -> (&mut Arrival, &mut Work<Self::Addr>) {
        (&mut scratch.arrival, &mut scratch.v4)
    }

    #[inline(always)]
    fn service_key(addr: Be32, port: Be16, proto: u8) -> ServiceKey4 {
        ServiceKey4 {
            addr,
            port,
            proto,
            pad: 0,
        }
    }

    #[inline(always)]
    fn mapped(addr: Be32) -> Addr6 {
        Addr6::mapped(addr)
    }

    #[inline(always)]
    fn from_mapped(addr: Addr6) -> Be32 {
        addr.0[3]
    }

    #[inline(always)]
    fn addr_in(template: &[u8; HEADER_MAX], at: usize) -> Be32 {
        Be32::from_bytes([
            template[at],
            template[at + 1],
            template[at + 2],
            template[at + 3],
        ])
    }

    #[inline(always)]
    fn delta(old: Be32, new: Be32) -> u64 {
        checksum::delta(old.raw(), new.raw())
    }

    #[inline(always)]
    fn hash(key: &hash::Key, src: Be32, dst: Be32, ports: Ports, proto: u8, fields: u32) -> u64 {
        let mut sum = hash::start(key);
        sum = hash::add(sum, key, 0, src.raw());
        sum = hash::add(sum, key, 1, dst.raw());
        if fields == hash_fields::FIVE_TUPLE {
            sum = hash::add(sum, key, 8, word(ports));
            sum = hash::add(sum, key, 9, u32::from(proto));
        }
        hash::finish(sum)
    }

    #[inline(always)]
    fn with_dst(header: Ipv4, new: Be32) -> Ipv4 {
        let sum = checksum::update(header.checksum.raw(), Self::delta(header.dst, new));
        Ipv4 {
            dst: new,
            checksum: Be16::from_raw(sum),
            ..header
        }
    }

    #[inline(always)]
    fn sum(addr: Be32) -> u64 {
        u64::from(addr.raw())
    }

    #[inline(always)]
    fn header(proto: u8, payload_len: u16, src: Be32, dst: Be32) -> Ipv4 {
        let total_len = Be16::new(payload_len + 20);
        let header = Ipv4 {
            version_ihl: 0x45,
            total_len,
            ttl: HOPS,
            protocol: proto,
            src,
            dst,
            ..Ipv4::default()
        };
        let sum = u64::from(Be16::new(0x4500).raw())
            + u64::from(total_len.raw())
            + u64::from(Be16::new(u16::from(HOPS) << 8 | u16::from(proto)).raw())
            + u64::from(src.raw())
            + u64::from(dst.raw());
        Ipv4 {
            checksum: Be16::from_raw(!checksum::fold(sum)),
            ..header
        }
    }

    #[inline(always)]
    fn with_traffic_class(header: Ipv4, class: u8) -> Ipv4 {
        let old = u32::from(Be16::new(u16::from(header.tos)).raw());
        let new = u32::from(Be16::new(u16::from(class)).raw());
        let sum = checksum::update(header.checksum.raw(), checksum::delta(old, new));
        Ipv4 {
            tos: class,
            checksum: Be16::from_raw(sum),
            ..header
        }
    }
}
