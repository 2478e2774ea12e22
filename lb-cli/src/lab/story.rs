//! Pods change while connections are open, the router moves flows between balancers, and new connections come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::cluster::Place;
use super::load::{self, Tally};
use super::network::{Network, equally, some_of};
use super::objects::Phase;
use super::run::{Run, SERVICE};
use super::scenario::{self, Change, Step, TAIL_MS};
use super::ways::Mix;

/// New connections a second.
const NEW_PER_SECOND: u32 = 50;
/// Between two moves of the router's ECMP.
const ECMP_PAUSE_MS: std::ops::Range<u64> = 150..1_200;

impl Run {
    /// Changes pods step by step, while the router moves flows and new connections come, none of which may fail.
    pub(super) async fn story(&mut self, steps: Vec<Step>) -> anyhow::Result<()> {
        let tally = self
            .story_under(steps, Mix::OneInFiveUdp, NEW_PER_SECOND)
            .await?;
        self.summary.add_tally(tally);
        Ok(())
    }

    /// The same with so many new connections a second; says what became of them.
    pub(super) async fn story_under(
        &mut self,
        steps: Vec<Step>,
        mix: Mix,
        per_second: u32,
    ) -> anyhow::Result<Tally> {
        let stop = CancellationToken::new();
        let ways = self.ways(mix);
        let new = self
            .client
            .handle()
            .spawn(load::steady(ways, per_second, stop.clone()));
        let moves = self.move_ecmp(stop.clone());
        let start = Instant::now();
        for Step { at_ms, change } in steps {
            tokio::time::sleep_until((start + Duration::from_millis(at_ms)).into()).await;
            self.change(change)?;
        }
        tokio::time::sleep(Duration::from_millis(TAIL_MS)).await;
        stop.cancel();
        self.summary.ecmp_moves += moves.await.context("the mover of ECMP ended early")??;
        new.await.context("the load's task ended early")?
    }

    /// Moves the router's ECMP at random moments until told to stop; says how often.
    fn move_ecmp(&mut self, stop: CancellationToken) -> JoinHandle<anyhow::Result<u64>> {
        let network: Arc<Network> = Arc::clone(&self.cluster.network);
        let mut random = StdRng::seed_from_u64(self.random.random());
        let learns = self.cluster.settings.bird;
        tokio::spawn(async move {
            if learns {
                // Its paths are what it has learnt.
                stop.cancelled().await;
                return Ok(0);
            }
            let balancers = network.every_balancer();
            let mut moves = 0;
            loop {
                let pause = Duration::from_millis(random.random_range(ECMP_PAUSE_MS));
                if tokio::time::timeout(pause, stop.cancelled()).await.is_ok() {
                    break;
                }
                network.move_ecmp(&some_of(&balancers, &mut random)).await?;
                moves += 1;
            }
            network.move_ecmp(&equally(&balancers)).await?;
            Ok(moves)
        })
    }

    /// Does it, and says what was done.
    pub(super) fn change(&mut self, change: Change) -> anyhow::Result<String> {
        let says = match change {
            Change::Add(count) => {
                let places = std::iter::repeat_n(Place::FewestPods, count);
                let names = self.cluster.add_pods(places, scenario::FIRST)?;
                format!("new: {}", names.join(", "))
            }
            Change::Succeed(old) => {
                let place = Place::AwayFrom(old);
                let names = self.cluster.add_pods([place], scenario::FIRST)?;
                format!("new: {}", names.join(", "))
            }
            Change::Phase(pods, phase) => {
                let names: Vec<String> = pods
                    .iter()
                    .filter_map(|pod| Some(self.cluster.pods.get(*pod)?.name.clone()))
                    .collect();
                self.cluster.set_phase(&names, phase);
                let becomes = match phase {
                    Phase::Ready => "ready again",
                    Phase::Unready => "not ready any more",
                    Phase::Terminating => "told to end",
                    Phase::Gone => "out of the Service (and still alive)",
                };
                format!("{}: {becomes}", names.join(", "))
            }
            Change::SwitchSelector => {
                self.cluster.change_service(SERVICE, |service| {
                    let selector = [("app".to_owned(), scenario::NEXT.to_owned())];
                    if let Some(spec) = &mut service.spec {
                        spec.selector = Some(selector.into());
                    }
                })?;
                format!("the Service selects app={}", scenario::NEXT)
            }
            Change::SwitchTargetPorts => {
                self.cluster.change_service(SERVICE, |service| {
                    let spec = service.spec.iter_mut();
                    for port in spec.flat_map(|spec| spec.ports.iter_mut().flatten()) {
                        if let Some(IntOrString::Int(target)) = &mut port.target_port {
                            *target += 1;
                        }
                    }
                })?;
                "the Service points to other ports of its pods".to_owned()
            }
        };
        self.voice.say(&says);
        self.cluster.publish()?;
        Ok(says)
    }
}
