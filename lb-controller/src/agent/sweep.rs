//! Looks through the flows of this node, now and then and when asked: idle ones end, those that tables do not find must be pinned,
//! and pinned ones that have ended need no pin. A million flows take a while, so it is not the core's business.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::core::handing::Wanted;
use super::core::pins::Swept;
use super::handle::Handle;
use crate::dataplane::ApplyError;
use crate::dataplane::flows::{FlowRecord, Flows, IdleTimeouts, now_tick};
use crate::model::pins::FlowKey;

/// How often flows are looked through: a tenth of the shortest time that ends one.
const SWEEP_PERIOD: Duration = Duration::from_secs(12);
/// Flows found at once that must be pinned, so that the core is not kept from everything else for long.
const FOUND_AT_ONCE: usize = 4096;

/// Sweeps until stopped.
pub(super) async fn run(
    flows: Arc<Flows>,
    total: Arc<AtomicU64>,
    handle: Arc<Handle>,
    asked: Arc<Notify>,
    stop: CancellationToken,
) {
    loop {
        let is_due = tokio::select! {
            () = tokio::time::sleep(SWEEP_PERIOD) => true,
            () = asked.notified() => false,
            () = stop.cancelled() => return,
        };
        let Ok((wanted, pinned)) = handle.sweep_wanted().await else {
            // The core is busy; the next look is as good.
            continue;
        };
        let flows = Arc::clone(&flows);
        let looked = tokio::task::spawn_blocking(move || {
            let ended = if is_due {
                flows.sweep(now_tick(), &IdleTimeouts::default())?
            } else {
                0
            };
            look(&flows, &wanted, pinned).map(|swept| (swept, ended))
        });
        match looked.await {
            Ok(Ok((swept, ended))) => {
                total.fetch_add(ended, Ordering::Relaxed);
                tell(&handle, swept).await;
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "flows can not be looked through; tried again");
            }
            Err(_) => return,
        }
    }
}

/// Tells the core in pieces; proposals with the last, when all that they need is told.
async fn tell(handle: &Handle, swept: Swept) {
    let Swept {
        found,
        ended,
        proposals,
        drain,
        open,
    } = swept;
    let mut left = found.as_slice();
    while left.len() > FOUND_AT_ONCE {
        let (now, later) = left.split_at(FOUND_AT_ONCE);
        left = later;
        let piece = Swept {
            found: now.to_vec(),
            ..Swept::default()
        };
        _ = handle.swept(piece).await;
    }
    let last = Swept {
        found: left.to_vec(),
        ended,
        proposals,
        drain,
        open,
    };
    _ = handle.swept(last).await;
}

fn look(
    flows: &Flows,
    wanted: &Wanted,
    pinned: Vec<(FlowKey, SocketAddr)>,
) -> Result<Swept, ApplyError> {
    let mut swept = Swept {
        proposals: wanted.proposals.iter().map(|(id, _)| *id).collect(),
        drain: wanted.drain.clone(),
        ..Swept::default()
    };
    let pods: HashMap<FlowKey, SocketAddr> = pinned.iter().copied().collect();
    let mut open = 0;
    flows.list(|record| {
        open += u64::from(record.is_open() && record.is_known());
        let is_pinned = |flow: &FlowKey| pods.get(flow) == Some(&record.pod);
        if record.is_open()
            && let Ok(flow) = FlowKey::new(record.protocol, record.client, record.vip)
            && !is_pinned(&flow)
            && must_be_pinned(&flow, &record, wanted)
        {
            swept.found.push(record);
        }
        true
    })?;
    swept.open = Some(open);
    for (key, pod) in pinned {
        if !flows.is_open(key.protocol(), key.client(), pod)? {
            swept.ended.push((key, pod));
        }
    }
    Ok(swept)
}

/// Whether balancers may not find a flow by their tables.
fn must_be_pinned(flow: &FlowKey, record: &FlowRecord, wanted: &Wanted) -> bool {
    let proposals = wanted.proposals.iter();
    let mut concerned = proposals.filter(|(_, finder)| finder.is_about(flow));
    // Half-open ones are reported at a limited rate, or a flood would fill the balancers with pins.
    let is_tracked = || wanted.drain.is_some() || wanted.tracked.contains(&record.vip.ip());
    record.is_known() && (record.is_reported || is_tracked())
        || concerned.any(|(_, finder)| !finder.finds(flow, record.identity, record.pod.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::flows::Stage;

    #[test]
    fn known_flows_that_deviate_or_are_tracked_must_be_pinned_and_a_flood_need_not() {
        let end = |text: &str| text.parse::<SocketAddr>().unwrap();
        let record = |stage, is_reported| FlowRecord {
            protocol: 6,
            client: end("192.0.2.1:1"),
            vip: end("198.51.100.1:80"),
            pod: end("10.1.0.1:80"),
            identity: 1,
            stage,
            idle_ticks: 0,
            is_reported,
        };
        let known = Stage::Known { client: 0, pod: 0 };
        let must = |record: FlowRecord, wanted: &Wanted| {
            let flow = FlowKey::new(6, record.client, record.vip).unwrap();
            must_be_pinned(&flow, &record, wanted)
        };
        let nothing = Wanted::default();
        assert!(must(record(known, true), &nothing));
        assert!(!must(record(known, false), &nothing));
        assert!(!must(record(Stage::HalfOpen, true), &nothing));
        let tracked = Wanted {
            tracked: [end("198.51.100.1:80").ip()].into(),
            ..Wanted::default()
        };
        assert!(must(record(known, false), &tracked));
        assert!(!must(record(Stage::HalfOpen, true), &tracked));
    }
}
