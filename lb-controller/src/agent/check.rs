//! Is this machine fit? Each thing that is looked at gives one line with what to do. Judgements are pure; [`look`] reads
//! what they judge from `/proc` (never `/sys/class/net`, which may show another network namespace).

use std::path::Path;

use lb_ebpf::abi;

use crate::admin::{Check, Checks, Interface, Outcome, Role};
use crate::dataplane::links::Links;

/// Oldest kernel that runs our programs: Debian 12's, on which they are tested.
pub const KERNEL_MIN: (u32, u32) = (6, 1);
/// From here on the egress program is attached by tcx.
const KERNEL_TCX: (u32, u32) = (6, 6);
/// MTU of an Ethernet that nobody has raised; TCP then lives with a clamped MSS.
const MTU_PLAIN: u32 = 1500;

/// What is known about the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Runs as root.
    pub root: bool,
    /// Release of the kernel, as `uname -r` says.
    pub kernel: String,
    /// The kernel describes its types.
    pub btf: bool,
    /// The pin directory is, or would be made, on a bpffs.
    pub bpffs: bool,
    /// `net.core.bpf_jit_enable`.
    pub jit: Option<u32>,
    /// `net.ipv4.ip_forward` and `net.ipv6.conf.all.forwarding`.
    pub forwarding: [Option<u32>; 2],
    /// `rp_filter` by interface, `all` included.
    pub rp_filter: Vec<(String, u32)>,
    /// MTU by interface, as far as known.
    pub mtu: Vec<(String, u32)>,
}

/// Looks at the machine.
pub fn look(pin_dir: &Path, interfaces: &[Interface], links: &Links) -> Machine {
    let number =
        |path: String| -> Option<u32> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    let names = || interfaces.iter().map(|interface| interface.name.clone());
    let read =
        |path: &dyn Fn(&str) -> String, name: String| Some((name.clone(), number(path(&name))?));
    Machine {
        root: nix::unistd::geteuid().is_root(),
        kernel: nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        bpffs: is_bpffs(pin_dir),
        jit: number("/proc/sys/net/core/bpf_jit_enable".to_owned()),
        forwarding: [
            "/proc/sys/net/ipv4/ip_forward",
            "/proc/sys/net/ipv6/conf/all/forwarding",
        ]
        .map(|path| number(path.to_owned())),
        rp_filter: std::iter::once("all".to_owned())
            .chain(names())
            .filter_map(|name| {
                read(
                    &|name| format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"),
                    name,
                )
            })
            .collect(),
        mtu: names()
            .filter_map(|name| Some((name.clone(), links.by_name(&name)?.mtu)))
            .collect(),
    }
}

/// The nearest directory that exists decides, since the agent makes the rest.
fn is_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find_map(|path| nix::sys::statfs::statfs(path).ok())
        .is_some_and(|found| found.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

/// Judges everything.
pub fn judge(machine: &Machine, interfaces: &[Interface], role: Role) -> Checks {
    let mut checks = vec![
        root(machine.root),
        kernel(&machine.kernel),
        btf(machine.btf),
        bpffs(machine.bpffs),
        jit(machine.jit),
    ];
    if role != Role::Balancer {
        checks.extend([
            forwarding("ip_forward", machine.forwarding[0]),
            forwarding("ipv6_forwarding", machine.forwarding[1]),
        ]);
        checks.push(rp_filter(&machine.rp_filter));
    }
    checks.extend(machine.mtu.iter().map(|(name, mtu)| self::mtu(name, *mtu)));
    checks.extend(interfaces.iter().map(interface));
    Checks { checks }
}

fn check(
    name: impl Into<String>,
    outcome: Outcome,
    detail: impl Into<String>,
    advice: impl Into<String>,
) -> Check {
    Check {
        name: name.into(),
        outcome,
        detail: detail.into(),
        advice: advice.into(),
    }
}

fn root(root: bool) -> Check {
    if root {
        check("root", Outcome::Ok, "runs as root", "")
    } else {
        check(
            "root",
            Outcome::Fail,
            "does not run as root",
            "start the agent as root",
        )
    }
}

/// Major and minor number of a release.
pub fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn kernel(release: &str) -> Check {
    let detail = format!("kernel {release}");
    match version_of(release) {
        Some(version) if version >= KERNEL_TCX => check("kernel", Outcome::Ok, detail, ""),
        Some(version) if version >= KERNEL_MIN => check(
            "kernel",
            Outcome::Ok,
            detail + "; before 6.6 the egress program is a clsact filter",
            "",
        ),
        Some(_) | None => check(
            "kernel",
            Outcome::Fail,
            detail,
            format!("use a kernel of at least {}.{}", KERNEL_MIN.0, KERNEL_MIN.1),
        ),
    }
}

fn btf(btf: bool) -> Check {
    if btf {
        check("btf", Outcome::Ok, "/sys/kernel/btf/vmlinux is there", "")
    } else {
        check(
            "btf",
            Outcome::Fail,
            "/sys/kernel/btf/vmlinux is missing",
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions build it",
        )
    }
}

fn bpffs(bpffs: bool) -> Check {
    if bpffs {
        check("bpffs", Outcome::Ok, "the pin directory is on a bpffs", "")
    } else {
        check(
            "bpffs",
            Outcome::Fail,
            "the pin directory is not on a bpffs",
            "mount one: mount -t bpf bpf /sys/fs/bpf, or choose another --pin-dir",
        )
    }
}

fn jit(jit: Option<u32>) -> Check {
    match jit {
        Some(0) => check(
            "jit",
            Outcome::Warn,
            "net.core.bpf_jit_enable is 0: programs are interpreted, at a fraction of the speed",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        Some(_) => check("jit", Outcome::Ok, "programs are compiled", ""),
        // The file is missing when the kernel always compiles, or when this is not the first namespace.
        None => check(
            "jit",
            Outcome::Ok,
            "net.core.bpf_jit_enable is not visible from here",
            "",
        ),
    }
}

fn forwarding(name: &str, value: Option<u32>) -> Check {
    match value {
        Some(0) => check(
            name,
            Outcome::Fail,
            "packets are not forwarded to pods",
            match name {
                "ip_forward" => "sysctl -w net.ipv4.ip_forward=1",
                _ => "sysctl -w net.ipv6.conf.all.forwarding=1",
            },
        ),
        Some(_) => check(name, Outcome::Ok, "packets are forwarded to pods", ""),
        None => check(name, Outcome::Warn, "the family is switched off", ""),
    }
}

/// Strict filtering drops a client's packet that comes from a balancer instead of the client's own direction.
fn rp_filter(values: &[(String, u32)]) -> Check {
    let of = |wanted: &str| {
        values
            .iter()
            .find(|(name, _)| name == wanted)
            .map_or(0, |(_, value)| *value)
    };
    // The kernel takes the larger of both; 2 is loose.
    let strict: Vec<_> = values
        .iter()
        .filter(|(name, value)| name != "all" && (*value).max(of("all")) == 1)
        .map(|(name, _)| name.as_str())
        .collect();
    if strict.is_empty() {
        return check("rp_filter", Outcome::Ok, "not strict", "");
    }
    check(
        "rp_filter",
        Outcome::Warn,
        format!(
            "strict on {}: clients that another interface leads to are dropped",
            strict.join(", ")
        ),
        format!("sysctl -w net.ipv4.conf.{}.rp_filter=2", strict[0]),
    )
}

fn mtu(name: &str, mtu: u32) -> Check {
    let room = mtu.saturating_sub(u32::from(abi::OVERHEAD_V6));
    if mtu > MTU_PLAIN {
        return check(
            format!("mtu {name}"),
            Outcome::Ok,
            format!("{mtu}: packets of {room} bytes fit with outer headers"),
            "",
        );
    }
    check(
        format!("mtu {name}"),
        Outcome::Warn,
        format!(
            "{mtu}: packets above {room} bytes do not fit with outer headers; TCP adapts, large UDP without DF is dropped"
        ),
        "raise the MTU between nodes by 120 if clients send large UDP datagrams",
    )
}

fn interface(interface: &Interface) -> Check {
    let Interface {
        name,
        ifindex: _,
        xdp_mode,
        xdp_program_id: _,
        tc_kind,
        problem,
    } = interface;
    let line = format!("interface {name}");
    if let Some(problem) = problem {
        return check(line, Outcome::Fail, problem, "");
    }
    let tc = tc_kind.as_deref().unwrap_or("none");
    match xdp_mode.as_deref() {
        Some("generic") => check(
            line,
            Outcome::Warn,
            format!("XDP generic, egress {tc}: slower, since the driver has no native mode"),
            "use an interface whose driver has native XDP",
        ),
        Some(mode) => check(
            line,
            Outcome::Ok,
            format!("XDP {mode}, egress {tc}"),
            // Partial checksums of local senders reach XDP on virtual interfaces.
            if name.starts_with("veth") {
                "on a veth: switch tx checksumming off at its peer"
            } else {
                ""
            },
        ),
        None => check(line, Outcome::Fail, "no XDP program", "see the agent's log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit() -> Machine {
        Machine {
            root: true,
            kernel: "6.18.0-debian".into(),
            btf: true,
            bpffs: true,
            jit: Some(1),
            forwarding: [Some(1), Some(1)],
            rp_filter: vec![("all".into(), 0), ("eth0".into(), 0)],
            mtu: vec![("eth0".into(), 1620)],
        }
    }

    fn eth0() -> Interface {
        Interface {
            name: "eth0".into(),
            ifindex: 2,
            xdp_mode: Some("native".into()),
            xdp_program_id: Some(1),
            tc_kind: Some("tcx".into()),
            problem: None,
        }
    }

    fn outcomes(machine: &Machine, interface: Interface) -> Vec<(String, Outcome)> {
        let checks = judge(machine, &[interface], Role::Both).checks;
        checks
            .into_iter()
            .filter(|c| c.outcome != Outcome::Ok)
            .map(|c| (c.name, c.outcome))
            .collect()
    }

    #[test]
    fn a_fit_machine_has_nothing_to_do() {
        assert_eq!(outcomes(&fit(), eth0()), []);
    }

    #[test]
    fn an_unfit_machine_is_told_everything_at_once() {
        let machine = Machine {
            root: false,
            kernel: "5.15.0".into(),
            btf: false,
            bpffs: false,
            jit: Some(0),
            forwarding: [Some(0), Some(0)],
            rp_filter: vec![("all".into(), 1), ("eth0".into(), 0)],
            mtu: vec![("eth0".into(), 1500)],
        };
        let interface = Interface {
            problem: Some("another XDP program is attached; detach it".into()),
            ..eth0()
        };
        let found: Vec<_> = outcomes(&machine, interface)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(
            found,
            [
                "root",
                "kernel",
                "btf",
                "bpffs",
                "jit",
                "ip_forward",
                "ipv6_forwarding",
                "rp_filter",
                "mtu eth0",
                "interface eth0"
            ]
        );
    }

    #[test]
    fn loose_filtering_of_the_interface_wins_over_strict_filtering_of_all() {
        let machine = Machine {
            rp_filter: vec![("all".into(), 1), ("eth0".into(), 2)],
            ..fit()
        };
        assert_eq!(outcomes(&machine, eth0()), []);
    }

    #[test]
    fn releases_are_read_as_distributions_write_them() {
        assert_eq!(version_of("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version_of("6.18.3"), Some((6, 18)));
        assert_eq!(version_of("nonsense"), None);
    }
}
