//! What listens: health and metrics over TCP, and the admin answers over a Unix socket that only its owner may open.
//!
//! Knows no rules: it asks a [`Answers`] and writes what that answers.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Json, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use crate::admin;

/// Longest wait for an answer; a core that is silent for longer is not healthy.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The one who knows is busy or gone.
    #[error("the agent did not answer within {} s; see its log", ANSWER_MAX.as_secs())]
    Silent,
    /// The request makes no sense.
    #[error("{0}")]
    Bad(String),
    /// It does, but there is nothing of that name.
    #[error("{0}")]
    NotFound(String),
    /// It can not be answered now, or here.
    #[error("{0}")]
    Unavailable(String),
}

/// An answer, later.
pub type Answer<T> = BoxFuture<'static, Result<T, AskError>>;

/// Who knows the answers.
pub trait Answers: Send + Sync + 'static {
    /// Why not ready; nothing when ready.
    fn not_ready_because(&self) -> Answer<Vec<String>>;
    /// All metrics, as Prometheus reads them.
    fn metrics(&self) -> Answer<String>;
    /// See [`admin::Status`].
    fn status(&self) -> Answer<admin::Status>;
    /// See [`admin::Services`].
    fn services(&self) -> Answer<admin::Services>;
    /// See [`admin::Backends`].
    fn backends(&self) -> Answer<admin::Backends>;
    /// See [`admin::Flows`].
    fn flows(&self, wanted: FlowsWanted) -> Answer<admin::Flows>;
    /// See [`admin::Checks`].
    fn check(&self) -> Answer<admin::Checks>;
    /// See [`admin::Explanation`].
    fn explain(&self, request: admin::ExplainRequest) -> Answer<admin::Explanation>;
}

/// Which flows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct FlowsWanted {
    /// How many at most.
    pub limit: Option<usize>,
    /// Only of this client.
    pub client: Option<std::net::IpAddr>,
    /// Only to this VIP.
    pub vip: Option<std::net::IpAddr>,
}

/// A socket can not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// TCP.
    #[error("{address} can not be listened at: {source}; choose another --metrics-listen")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Unix.
    #[error("{path} can not be listened at: {source}; choose another --admin-socket")]
    Unix {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Somebody answers there.
    #[error("another agent answers at {0}; stop it or choose another --admin-socket")]
    InUse(PathBuf),
}

type Shared<A> = Arc<A>;

/// Serves `/metrics`, `/healthz` and `/readyz` until stopped.
pub async fn serve_tcp<A: Answers>(
    listener: TcpListener,
    answers: Shared<A>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = axum::Router::new()
        .route("/metrics", get(metrics::<A>))
        .route("/healthz", get(healthy::<A>))
        .route("/readyz", get(ready::<A>))
        .with_state(answers);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// Serves the admin answers until stopped.
pub async fn serve_unix<A: Answers>(
    listener: UnixListener,
    answers: Shared<A>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let router = axum::Router::new()
        .route(
            "/v1/status",
            get(|State(a): State<Shared<A>>| async move { json(a.status()).await }),
        )
        .route(
            "/v1/services",
            get(|State(a): State<Shared<A>>| async move { json(a.services()).await }),
        )
        .route(
            "/v1/backends",
            get(|State(a): State<Shared<A>>| async move { json(a.backends()).await }),
        )
        .route("/v1/flows", get(flows::<A>))
        .route(
            "/v1/check",
            get(|State(a): State<Shared<A>>| async move { json(a.check()).await }),
        )
        .route("/v1/explain", post(explain::<A>))
        .fallback(async || {
            refusal(&AskError::NotFound(
                "there is no such question; see lbctl --help".to_owned(),
            ))
        })
        .with_state(answers);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// Listens over TCP.
pub async fn listen_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError::Tcp { address, source })
}

/// Listens at a path that only its owner may open; a socket left over by a crash is replaced.
pub fn listen_unix(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |source| ListenError::Unix {
        path: path.to_owned(),
        source,
    };
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(ListenError::InUse(path.to_owned()));
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    // Bound beside its place and renamed, so that nobody opens it before it is closed to others.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    _ = std::fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside).map_err(failed)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    std::fs::rename(&beside, path).map_err(failed)?;
    Ok(listener)
}

/// Waits for an answer, but not for ever.
async fn wait<T>(answer: Answer<T>) -> Result<T, AskError> {
    tokio::time::timeout(ANSWER_MAX, answer)
        .await
        .unwrap_or(Err(AskError::Silent))
}

async fn json<T: Serialize>(answer: Answer<T>) -> Response {
    match wait(answer).await {
        Ok(value) => Json(value).into_response(),
        Err(error) => refusal(&error),
    }
}

async fn flows<A: Answers>(
    State(answers): State<Shared<A>>,
    wanted: Result<Query<FlowsWanted>, QueryRejection>,
) -> Response {
    match wanted {
        Ok(Query(wanted)) => json(answers.flows(wanted)).await,
        Err(error) => refusal(&AskError::Bad(format!(
            "{}; give limit=NUMBER, client=IP, vip=IP",
            error.body_text()
        ))),
    }
}

async fn explain<A: Answers>(
    State(answers): State<Shared<A>>,
    request: Result<Json<admin::ExplainRequest>, JsonRejection>,
) -> Response {
    match request {
        Ok(Json(request)) => json(answers.explain(request)).await,
        Err(error) => refusal(&AskError::Bad(format!(
            "{}; send client, vip and protocol",
            error.body_text()
        ))),
    }
}

fn refusal(error: &AskError) -> Response {
    let code = match error {
        AskError::Bad(_) => StatusCode::BAD_REQUEST,
        AskError::NotFound(_) => StatusCode::NOT_FOUND,
        AskError::Silent | AskError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    (
        code,
        Json(admin::Error {
            error: error.to_string(),
        }),
    )
        .into_response()
}

async fn metrics<A: Answers>(State(answers): State<Shared<A>>) -> Response {
    match wait(answers.metrics()).await {
        Ok(text) => (
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(error) => refusal(&error),
    }
}

/// Healthy as long as the core answers at all.
async fn healthy<A: Answers>(State(answers): State<Shared<A>>) -> Response {
    match wait(answers.not_ready_because()).await {
        Ok(_) => "ok\n".into_response(),
        Err(error) => refusal(&error),
    }
}

async fn ready<A: Answers>(State(answers): State<Shared<A>>) -> Response {
    match wait(answers.not_ready_because()).await {
        Ok(reasons) if reasons.is_empty() => "ready\n".into_response(),
        Ok(reasons) => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response(),
        Err(error) => refusal(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_closed_to_others_and_not_taken_from_a_living_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub").join("agent.sock");
        let listener = listen_unix(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let error = listen_unix(&path).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
        drop(listener);
        assert!(
            listen_unix(&path).is_ok(),
            "one left over by a crash is replaced"
        );
    }
}
