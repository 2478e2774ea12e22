//! A router of another make: FRR's bgpd understands what BIRD tells it as the agent configures it.

use std::fs::File;
use std::process::{Child, Stdio};

use lb_controller::announce::bgp::ESTABLISHED;
use lb_controller::announce::routes::Preference;

use crate::lab::{Lab, NODE, PEER, is_possible};
use crate::objects::{Agent, VIP, VIP6, objects, vips};

const BGPD: &str = "/usr/lib/frr/bgpd";

/// A router in the nodes' autonomous system, so that local preference counts.
const CONFIG: &str = "\
router bgp 64501
 bgp router-id 10.99.0.2
 bgp graceful-restart
 no bgp default ipv4-unicast
 neighbor 10.99.0.1 remote-as 64501
 neighbor 10.99.0.1 timers connect 1
 neighbor 10.99.0.1 password of-both
 neighbor fd99::1 remote-as 64501
 neighbor fd99::1 timers connect 1
 address-family ipv4 unicast
  neighbor 10.99.0.1 activate
 exit-address-family
 address-family ipv6 unicast
  neighbor fd99::1 activate
 exit-address-family
";

/// The router; ends when dropped.
struct Frr<'a> {
    lab: &'a Lab,
    bgpd: Child,
}

impl<'a> Frr<'a> {
    fn start(lab: &'a Lab) -> Self {
        let config = lab.path(PEER, "bgpd.conf");
        std::fs::write(&config, CONFIG).unwrap();
        let log = File::create(lab.path(PEER, "bgpd.log")).unwrap();
        let mut bgpd = lab.inside(PEER, BGPD);
        // Alone: without zebra nothing gets into its kernel. As root, and with nobody listening on another port.
        bgpd.args([
            "--no_zebra",
            "--skip_runas",
            "--vty_port",
            "0",
            "--log",
            "stdout",
        ]);
        bgpd.arg("--config_file").arg(config);
        bgpd.arg("--pid_file").arg(lab.path(PEER, "bgpd.pid"));
        bgpd.arg("--vty_socket").arg(lab.path(PEER, ""));
        let errors = log.try_clone().unwrap();
        let bgpd = bgpd.stdin(Stdio::null()).stdout(log).stderr(errors);
        Self {
            lab,
            bgpd: bgpd.spawn().unwrap(),
        }
    }

    /// What it says of a route, as JSON.
    fn told(&self, prefix: &str) -> String {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        let mut vtysh = self.lab.inside(PEER, "vtysh");
        vtysh.arg("--vty_socket").arg(self.lab.path(PEER, ""));
        let question = format!("show bgp {family} unicast {prefix} json");
        let told = vtysh
            .args(["-d", "bgpd", "-c", &question])
            .output()
            .unwrap();
        String::from_utf8_lossy(&told.stdout).into_owned()
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let log = self.lab.path(PEER, "bgpd.log");
        let what = || {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            format!("{what}: {} {} {log}", self.told(VIP), self.told(VIP6))
        };
        self.lab.until_told(what, holds);
    }
}

impl Drop for Frr<'_> {
    fn drop(&mut self) {
        _ = self.bgpd.kill();
        _ = self.bgpd.wait();
    }
}

#[test]
fn frr_is_told_what_advertisements_say() {
    if !is_possible() {
        return;
    }
    if !std::path::Path::new(BGPD).exists() {
        eprintln!("skipped: no {BGPD} on this machine (Debian package frr)");
        return;
    }
    let mut lab = Lab::without_router();
    std::fs::write(lab.path(NODE, "rack-a"), "of-both\n").unwrap();
    let agent = Agent::start(&lab);
    let (index, both) = (objects("", ""), vips(&[VIP, VIP6]));
    agent.want(&index, &both, Preference::Full);
    lab.until("BIRD's configuration is there", || {
        lab.path(NODE, "bird.conf").exists()
    });
    lab.recover(NODE);
    let frr = Frr::start(&lab);
    let says = |words: &[&str]| {
        [VIP, VIP6].iter().all(|prefix| {
            let told = frr.told(prefix);
            words.iter().all(|word| told.contains(word))
        })
    };
    frr.until("both VIPs with their attributes", || {
        says(&["64501:100", "64501:1:2", "\"locPrf\":300"])
    });
    frr.until("both sessions", || {
        let states = agent.states();
        states.len() == 2 && states.iter().all(|(_, state, _)| state == ESTABLISHED)
    });
    agent.want(&index, &both, Preference::Last);
    frr.until("GRACEFUL_SHUTDOWN", || says(&["gracefulShutdown"]));
    agent.want(&index, &both, Preference::None);
    frr.until("nothing", || {
        [VIP, VIP6]
            .iter()
            .all(|prefix| !frr.told(prefix).contains("locPrf"))
    });
}
