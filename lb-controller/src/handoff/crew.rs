//! One task per node at the other end, begun and ended as nodes come and go, and joined.

use std::collections::BTreeMap;
use std::sync::Arc;

use backon::BackoffBuilder;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Others, Times};
use crate::model::template::NodeAddresses;

/// Keeps a task for each node until stopped. One whose addresses change gets a new task.
pub(super) async fn keep<F>(
    mut nodes: watch::Receiver<Others>,
    begin: impl Fn(Arc<str>, NodeAddresses, CancellationToken) -> F,
    stop: CancellationToken,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let mut known: BTreeMap<Arc<str>, (NodeAddresses, CancellationToken)> = BTreeMap::new();
    loop {
        let wanted = nodes.borrow_and_update().clone();
        known.retain(|node, (addresses, stop)| {
            let stays = wanted.get(node) == Some(addresses);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for (node, addresses) in wanted {
            known.entry(node).or_insert_with_key(|node| {
                let stop = stop.child_token();
                tasks.spawn(begin(Arc::clone(node), addresses, stop.clone()));
                (addresses, stop)
            });
        }
        let changed = async {
            loop {
                tokio::select! {
                    changed = nodes.changed() => return changed,
                    Some(_) = tasks.join_next() => {}
                }
            }
        };
        match stop.run_until_cancelled(changed).await {
            Some(Ok(())) => {}
            // Whoever names the nodes has ended, or we are told to.
            Some(Err(_)) | None => break,
        }
    }
    for (_, stop) in known.values() {
        stop.cancel();
    }
    while tasks.join_next().await.is_some() {}
}

/// Growing pauses with jitter, without end.
pub(super) fn pauses(times: &Times) -> backon::ExponentialBackoff {
    backon::ExponentialBuilder::default()
        .with_min_delay(times.retry_first)
        .with_max_delay(times.retry_max)
        .with_jitter()
        .without_max_times()
        .build()
}
