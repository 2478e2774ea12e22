//! Routing daemons of a lab: BIRD beside each balancer's agent, as `deploy/examples/bird.conf` has it, and one on the router, which
//! learns from them where to send packets for VIPs. Without them the router's paths are the lab's own business.

use std::fmt::Write;
use std::net::IpAddr;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use lb_controller::announce::routes::TABLE_DEFAULT;

use super::cluster::Cluster;
use super::plan::Machine;
use super::run::SERVICE;

/// How a balancer exports routes: what operators copy.
const EXAMPLE: &str = include_str!("../../../deploy/examples/bird.conf");
/// Autonomous system of the router in the example; all balancers share another one.
const ROUTER_AS: u32 = 64_500;
const OWN_AS: u32 = 64_501;
/// Sessions are up, and routes learnt, well within this: a second each for two attempts to connect.
const LEARN_LIMIT: Duration = Duration::from_secs(20);
/// Between two looks at the router's routes.
const POLL: Duration = Duration::from_millis(50);

/// The routing table that an agent keeps for BIRD.
pub(super) fn table() -> String {
    TABLE_DEFAULT.to_string()
}

impl Cluster {
    /// Starts BIRD on every balancer and on the router.
    pub(super) fn start_birds(&mut self) -> anyhow::Result<()> {
        let version = Command::new("bird").arg("--version").output();
        ensure!(
            version.is_ok(),
            "--bird needs BIRD 2: install the Debian package bird2"
        );
        let balancers: Vec<Machine> = self
            .network
            .machines
            .iter()
            .map(|(machine, _)| machine.clone())
            .filter(|machine| machine.role.balances())
            .collect();
        for machine in &balancers {
            self.start_bird(&machine.name, &balancer(machine))?;
        }
        self.start_bird("router", &router(&balancers)?)
    }

    fn start_bird(&mut self, name: &str, conf: &str) -> anyhow::Result<()> {
        let directory = self.ledger.directory().join("birds");
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("make {}", directory.display()))?;
        let path = directory.join(format!("{name}.conf"));
        std::fs::write(&path, conf).with_context(|| format!("write {}", path.display()))?;
        let mut command = Command::new("bird");
        command.arg("-f").arg("-c").arg(&path);
        command.arg("-s").arg(directory.join(format!("{name}.ctl")));
        let namespace = match name {
            "router" => &self.network.router,
            _ => &self.machine(name)?.1,
        };
        let child: Child = self.spawn(command, namespace, &format!("bird-{name}"))?;
        self.ledger.process(child.id())?;
        self.birds.push(child);
        Ok(())
    }

    /// Waits until the router sends packets for all VIPs to all balancers.
    pub(super) async fn routes_learnt(&self) -> anyhow::Result<()> {
        let wanted = self.balancers().len();
        let started = Instant::now();
        for vip in self.vips(SERVICE) {
            while self.paths(vip)? != wanted {
                if started.elapsed() > LEARN_LIMIT {
                    bail!(
                        "the router has {} paths to {vip} instead of {wanted}; see {}",
                        self.paths(vip)?,
                        self.logs().display()
                    );
                }
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// How many paths the router has to a VIP.
    fn paths(&self, vip: IpAddr) -> anyhow::Result<usize> {
        let family = if vip.is_ipv4() { "-4" } else { "-6" };
        let shown = self.network.router.inside(|| {
            let mut ip = Command::new("ip");
            let shown = ip
                .args([family, "route", "show", &vip.to_string()])
                .output();
            Ok(String::from_utf8_lossy(&shown.context("run ip")?.stdout).into_owned())
        })?;
        // One path is told in the first line, several in lines of their own.
        Ok(shown.matches("via ").count())
    }
}

/// The configuration of a balancer.
fn balancer(machine: &Machine) -> String {
    let [own, _] = machine.addresses();
    let [router4, router6] = machine.router();
    EXAMPLE
        .replace("192.0.2.11", &own.addr().to_string())
        .replace("192.0.2.1;", &format!("{};", router4.addr()))
        .replace("2001:db8::1;", &format!("{};", router6.addr()))
}

/// The configuration of the router: it spreads flows over all that are equally good.
fn router(balancers: &[Machine]) -> anyhow::Result<String> {
    let mut conf = format!(
        "router id 10.50.0.1;\nlog stderr all;\nprotocol device {{}}\n\
         protocol bfd {{ interface \"*\" {{ interval 100 ms; multiplier 3; }}; }}\n\
         protocol kernel {{ merge paths on; ipv4 {{ import none; export all; }}; }}\n\
         protocol kernel {{ merge paths on; ipv6 {{ import none; export all; }}; }}\n\
         filter from_balancers {{\n    if (65535, 0) ~ bgp_community then bgp_local_pref = 0;\n    accept;\n}}\n\
         template bgp balancers {{\n    local as {ROUTER_AS};\n    graceful restart on;\n    bfd on;\n    \
         connect retry time 1;\n    connect delay time 1;\n}}\n"
    );
    for (number, machine) in balancers.iter().enumerate() {
        for (family, address) in ["ipv4", "ipv6"].into_iter().zip(machine.addresses()) {
            writeln!(
                conf,
                "protocol bgp b{number}_{family} from balancers {{ neighbor {} as {OWN_AS}; \
                 {family} {{ import filter from_balancers; export none; }}; }}",
                address.addr()
            )
            .context("write a configuration")?;
        }
    }
    Ok(conf)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::plan;

    #[test]
    fn the_example_is_changed_where_it_says_so_and_nowhere_else() {
        let machines = plan::machines(2);
        let conf = balancer(&machines[0]);
        assert!(conf.contains("define ROUTER4 = 10.50.11.1;"), "{conf}");
        assert!(conf.contains("define ROUTER6 = fd50:0:0:b::1;"), "{conf}");
        assert!(conf.contains("router id 10.50.11.2;"), "{conf}");
        assert!(!conf.contains("192.0.2."), "{conf}");
        let router = router(&machines[..2]).unwrap();
        assert_eq!(router.matches("protocol bgp").count(), 4);
        assert!(
            router.contains("neighbor fd50:0:0:c::2 as 64501;"),
            "{router}"
        );
    }
}
