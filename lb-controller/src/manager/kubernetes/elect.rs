//! Taking part in the election of a leader: reads and writes the Lease as [`super::lease`] decides.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::lease::{self, Candidate, PERIOD, STOP_BEFORE, Step};

/// Tries to lead for as long as we run, and says until when we do.
pub(super) async fn elect(
    client: Client,
    namespace: String,
    identity: String,
    leads: watch::Sender<Option<Instant>>,
    stop: CancellationToken,
) {
    let leases = Api::<Lease>::namespaced(client, &namespace);
    let mut candidate = Candidate::new(identity);
    let mut told = String::new();
    while !stop.is_cancelled() {
        let began = Instant::now();
        let attempt = Box::pin(attempt(&leases, &mut candidate, began));
        let sentence = match tokio::time::timeout(STOP_BEFORE, attempt).await {
            Ok(Ok(())) => String::new(),
            Ok(Err(error)) => format!(
                "the lease can not be had: {}",
                crate::source::kubernetes::causes(&error)
            ),
            Err(_) => "the lease can not be had: the API server does not answer".to_owned(),
        };
        if sentence != told && !sentence.is_empty() {
            tracing::warn!("{sentence}");
        }
        told = sentence;
        let until = candidate.until();
        leads.send_if_modified(|old| std::mem::replace(old, until) != until);
        _ = stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await;
    }
    // The next one need not wait.
    leads.send_replace(None);
    let release = async {
        let lease = leases.get(lease::NAME).await.ok()?;
        let spec = candidate.released(&lease)?;
        let lease = Lease {
            spec: Some(spec),
            ..lease
        };
        leases
            .replace(lease::NAME, &PostParams::default(), &lease)
            .await
            .ok()
    };
    _ = tokio::time::timeout(Duration::from_secs(1), Box::pin(release)).await;
}

async fn attempt(
    leases: &Api<Lease>,
    candidate: &mut Candidate,
    began: Instant,
) -> Result<(), kube::Error> {
    let lease = leases.get_opt(lease::NAME).await?;
    match candidate.step(lease.as_ref(), began, Timestamp::now()) {
        Step::Wait => Ok(()),
        Step::Create(spec) => {
            let metadata = ObjectMeta {
                name: Some(lease::NAME.to_owned()),
                ..ObjectMeta::default()
            };
            leases
                .create(
                    &PostParams::default(),
                    &Lease {
                        metadata,
                        spec: Some(spec),
                    },
                )
                .await?;
            candidate.written(began);
            Ok(())
        }
        Step::Write(spec) => {
            let lease = Lease {
                spec: Some(spec),
                ..lease.unwrap_or_default()
            };
            leases
                .replace(lease::NAME, &PostParams::default(), &lease)
                .await?;
            candidate.written(began);
            Ok(())
        }
    }
}
