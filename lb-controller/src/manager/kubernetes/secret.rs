//! The Secret of the cluster: made once, by whichever manager is first.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::manager::SLEEP_MAX;
use crate::source::secret::{ClusterSecrets, NAME as SECRET_NAME};

/// Makes the secrets of the cluster if there are none. Tried until it is so.
pub(super) async fn ensure(client: Client, namespace: String) {
    let secrets = Api::<Secret>::namespaced(client, &namespace);
    let mut pause = Duration::from_millis(200);
    loop {
        match Box::pin(ensure_once(&secrets)).await {
            Ok(()) => return,
            Err(error) => tracing::warn!(
                "Secret {SECRET_NAME} can not be made or read: {error:#}; it is tried again"
            ),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(SLEEP_MAX);
    }
}

async fn ensure_once(secrets: &Api<Secret>) -> anyhow::Result<()> {
    if let Some(secret) = secrets.get_opt(SECRET_NAME).await? {
        ClusterSecrets::from_secret(&secret)?;
        return Ok(());
    }
    let secret = ClusterSecrets::random()
        .context("no random bytes")?
        .to_secret();
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => tracing::info!("made the secrets of the cluster"),
        // Another one was quicker.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}
