//! `lbctl lab run flood`: first packets from addresses that nobody has, as many as pods themselves could bear, during a
//! rollout. Balancers keep nothing of them, so nothing that is established suffers, and new connections hardly do.
//!
//! ```text
//! mod (rates, shares) → sender → syn
//! ```

mod sender;
mod syn;

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, bail};
use ipnet::IpNet;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use self::sender::{Flood, Sent};
use super::load::{self, Protocol, Tally};
use super::netns::Namespace;
use super::objects::Phase;
use super::run::{Run, SERVICE};
use super::scenario;
use super::ways::Mix;

/// Port of pods, and of the VIP.
const POD_PORT: u16 = 8080;
const VIP_PORT: u16 = 80;
/// Floods that are tried straight to a pod, until one is too many: each twice the one before.
const RATE_FIRST: u64 = 5_000;
const RATE_MAX: u64 = 640_000;
/// New connections beside each: a thousand in all, so that one failure is the most that is allowed.
const TRIED_PER_SECOND: u32 = 400;
const TRIED_FOR: Duration = Duration::from_millis(2_500);
/// A sender that is told to send twice as much, and does not send so many percent more, can not send more.
const GROWTH_MIN_PERCENT: u64 = 25;
/// A pod bears a flood beside which at least this share of new connections succeeds.
const BORNE: f64 = 0.999;
/// New connections a second during the rollouts.
const NEW_PER_SECOND: u32 = 200;
/// Through the VIP, so much of the share that succeeds without the flood must succeed with it.
const SHARE_MIN: f64 = 0.99;

/// What a flood did. Fields are added, never renamed.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Flooded {
    /// Packets a second that were sent straight to a pod which still served almost every new connection.
    pub(crate) borne_per_second: u64,
    /// Whether more were too many for the pod; otherwise for the sender.
    pub(crate) pod_was_the_limit: bool,
    /// Packets a second that were sent to the VIP.
    pub(crate) sent_per_second: u64,
    /// All of them.
    pub(crate) sent: u64,
    /// Share of new connections that succeeded straight to the pod beside the highest flood that it bore.
    pub(crate) share_direct: f64,
    /// The share through the VIP during a rollout without a flood.
    pub(crate) share_without: f64,
    /// The share through the VIP during a rollout with the flood.
    pub(crate) share_with: f64,
}

impl Flooded {
    /// New connections hardly suffer.
    pub(crate) fn is_held(&self) -> bool {
        self.share_with >= SHARE_MIN * self.share_without
    }

    /// All of it in a few words.
    pub(crate) fn shown(&self) -> String {
        let Self {
            borne_per_second,
            pod_was_the_limit,
            sent_per_second,
            sent,
            share_direct: _,
            share_without,
            share_with,
        } = self;
        let limit = if *pod_was_the_limit {
            "more is too many"
        } else {
            "the sender's limit"
        };
        format!(
            "{sent} at {sent_per_second}/s (a pod bears {borne_per_second}/s, {limit}); new connections {:.2} %, {:.2} % without it",
            share_with * 100.0,
            share_without * 100.0
        )
    }
}

impl Run {
    /// Finds the rate that a pod bears, and floods the VIP at it during a rollout.
    pub(super) async fn flood(&mut self) -> anyhow::Result<()> {
        let stranger = self.cluster.stranger()?;
        let mut flooded = self.bear(&stranger).await?;
        self.voice.say("a rollout without a flood");
        let steps = scenario::replacing(0..6);
        let tally = self
            .story_under(steps, Mix::OnlyTcp, NEW_PER_SECOND)
            .await?;
        flooded.share_without = share(&tally);
        self.tell("without the flood", tally);

        let rate = flooded.borne_per_second;
        self.voice.say(&format!(
            "a rollout, and {rate} first packets a second from nobody to the VIP"
        ));
        let mut vips = self.cluster.vips(SERVICE).into_iter();
        let vip = vips.find_map(|vip| four(vip, VIP_PORT));
        let vip = vip.context("the Service has no VIP of IPv4")?;
        let flood = Flood::begin(&stranger, vip, rate, FIRST_TO_VIP)?;
        let tally = self
            .story_under(scenario::replacing(6..12), Mix::OnlyTcp, NEW_PER_SECOND)
            .await;
        let sent = flood.end()?;
        let tally = tally?;
        flooded.share_with = share(&tally);
        flooded.sent = sent.packets;
        flooded.sent_per_second = sent.per_second();
        self.tell("beside the flood", tally);
        self.summary.flood = Some(flooded);
        Ok(())
    }

    /// Why new connections failed, which may happen.
    fn tell(&mut self, when: &str, tally: Tally) {
        for reason in tally.reasons {
            self.summary
                .sentence(format!("{when}: connection {reason}"));
        }
    }

    /// The highest rate straight to a pod beside which new connections to it succeed.
    async fn bear(&mut self, stranger: &Namespace) -> anyhow::Result<Flooded> {
        let mut pods = self
            .cluster
            .pods
            .iter()
            .filter(|pod| pod.phase == Phase::Ready);
        let pod = pods.next().context("there is no pod")?;
        let [address, _] = pod.addresses;
        let pod = four(address, POD_PORT).context("a pod has no address of IPv4")?;
        let mut borne = Flooded::default();
        let (mut rate, mut first) = (RATE_FIRST, 0);
        while rate <= RATE_MAX {
            let (tally, sent) = self.beside(stranger, pod, rate, first).await?;
            first = first.wrapping_add(u32::try_from(sent.packets).unwrap_or(u32::MAX));
            let share = share(&tally);
            self.voice.say(&format!(
                "straight to a pod: {} of {} new connections fail beside {}/s of {rate}/s",
                tally.failed,
                tally.connections,
                sent.per_second()
            ));
            if share < BORNE {
                borne.pod_was_the_limit = true;
                break;
            }
            let before = borne.borne_per_second;
            borne.borne_per_second = before.max(sent.per_second());
            borne.share_direct = share;
            if sent.per_second() * 100 < before * (100 + GROWTH_MIN_PERCENT) {
                break;
            }
            rate *= 2;
        }
        if borne.borne_per_second == 0 {
            bail!("a pod does not bear {RATE_FIRST} first packets a second: the run shows nothing");
        }
        Ok(borne)
    }

    async fn beside(
        &self,
        stranger: &Namespace,
        pod: SocketAddrV4,
        rate: u64,
        first: u32,
    ) -> anyhow::Result<(Tally, Sent)> {
        let ways = self.ways_to(&[(*pod.ip()).into()], Protocol::Tcp, pod.port());
        let stop = CancellationToken::new();
        let flood = Flood::begin(stranger, pod, rate, first)?;
        let new = self
            .client
            .handle()
            .spawn(load::steady(ways, TRIED_PER_SECOND, stop.clone()));
        tokio::time::sleep(TRIED_FOR).await;
        stop.cancel();
        // The last connections are still under way, and must not open because the flood is over.
        let tally = new.await.context("the load's task ended early");
        let sent = flood.end()?;
        Ok((tally??, sent))
    }
}

/// Far from the numbers of packets to pods: sources of which a pod still remembers something.
const FIRST_TO_VIP: u32 = 1 << 31;

fn share(tally: &Tally) -> f64 {
    // Some thousand.
    let count = |of: u64| f64::from(u32::try_from(of).unwrap_or(u32::MAX));
    let all = tally.connections.max(1);
    count(all.saturating_sub(tally.failed)) / count(all)
}

fn four(address: IpAddr, port: u16) -> Option<SocketAddrV4> {
    match SocketAddr::new(address, port) {
        SocketAddr::V4(four) => Some(four),
        SocketAddr::V6(_) => None,
    }
}

/// The network that the sources of a flood are from.
pub(super) fn sources() -> IpNet {
    let (network, prefix) = syn::SOURCES;
    IpNet::new_assert(network.into(), prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_connections_may_suffer_a_hundredth_of_what_succeeds_without_a_flood() {
        let flooded = |share_without, share_with| Flooded {
            share_without,
            share_with,
            ..Flooded::default()
        };
        assert!(flooded(1.0, 0.99).is_held());
        assert!(flooded(0.98, 0.971).is_held());
        assert!(!flooded(1.0, 0.989).is_held());
    }
}
