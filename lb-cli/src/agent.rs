//! Asking an agent: over its admin socket on this machine, or in its pod, see [`crate::cluster`]. Knows no command.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use hyper::{Method, StatusCode};
use lb_controller::admin;
pub(crate) use lb_controller::ask::ANSWER_LIMIT;
use lb_controller::ask::exchange;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use crate::cluster::AgentPod;

/// Whom to ask.
#[derive(Clone, Debug)]
pub(crate) enum Agent {
    /// The one behind this socket.
    Socket(PathBuf),
    /// One in a cluster.
    Pod(Box<AgentPod>),
}

/// The answer to `GET path`.
pub(crate) fn get<T: DeserializeOwned>(agent: &Agent, path: &str) -> anyhow::Result<T> {
    ask(agent, &Method::GET, path, Vec::new())
}

/// The answer to `POST path` with a JSON body.
pub(crate) fn post<T: DeserializeOwned>(
    agent: &Agent,
    path: &str,
    body: &impl Serialize,
) -> anyhow::Result<T> {
    let body = serde_json::to_vec(body).context("write JSON")?;
    ask(agent, &Method::POST, path, body)
}

fn ask<T: DeserializeOwned>(
    agent: &Agent,
    method: &Method,
    path: &str,
    body: Vec<u8>,
) -> anyhow::Result<T> {
    let answer = runtime()?.block_on(within(ANSWER_LIMIT, async {
        match agent {
            Agent::Socket(socket) => {
                let stream = UnixStream::connect(socket)
                    .await
                    .map_err(|error| anyhow!("{error}; {}", advice(error.kind())))?;
                let (status, body) = exchange(stream, method.clone(), path, body.into()).await?;
                read(status, &body)
            }
            Agent::Pod(pod) => {
                let client = pod.cluster.client().await?;
                value(&pod.ask(client, method.as_str(), path, &body).await?)
            }
        }
    }));
    answer.with_context(|| match agent {
        Agent::Socket(socket) => format!("asking the agent at {} for {path}", socket.display()),
        Agent::Pod(pod) => format!("asking the agent in pod {pod} for {path}"),
    })
}

/// What asking runs on: one question at a time needs one thread.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().context("start the runtime")
}

/// What a future gives, unless it takes too long.
pub(crate) async fn within<T>(
    limit: Duration,
    future: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    tokio::time::timeout(limit, future)
        .await
        .unwrap_or_else(|_| {
            Err(anyhow!(
                "no answer within {} s; see the agent's log",
                limit.as_secs()
            ))
        })
}

/// The value in an answer, or the sentence of a refusal.
fn read<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> anyhow::Result<T> {
    if !status.is_success() && serde_json::from_slice::<admin::Error>(body).is_err() {
        bail!("refused with {status}; use the lbctl of the agent's version");
    }
    value(body)
}

/// The same where only the body is known.
pub(crate) fn value<T: DeserializeOwned>(body: &[u8]) -> anyhow::Result<T> {
    if let Ok(admin::Error { error }) = serde_json::from_slice(body) {
        bail!("{error}");
    }
    serde_json::from_slice(body)
        .context("the answer is not what this lbctl expects; use the lbctl of the agent's version")
}

/// What to do about a socket that cannot be opened.
fn advice(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => {
            "start the agent on this machine, name its socket with --socket (`lbctl lab --keep` prints those of a lab), or ask a \
             cluster with --kubeconfig"
        }
        ErrorKind::PermissionDenied => "only root may ask: run lbctl as root",
        ErrorKind::ConnectionRefused => {
            "the agent that made this socket has ended: start it again, or name another socket with --socket"
        }
        _ => "name the agent's socket with --socket",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    /// A socket that gives one answer, and the request that it got.
    pub(crate) fn answering(name: &str, status: &str, body: &str) -> (Agent, JoinHandle<String>) {
        let socket =
            std::env::temp_dir().join(format!("lbctl-test-{}-{name}.sock", std::process::id()));
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let path = socket.clone();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            std::fs::remove_file(path).unwrap();
            String::from_utf8_lossy(&request[..length]).into_owned()
        });
        (Agent::Socket(socket), server)
    }

    #[test]
    fn an_answer_comes_back_through_a_real_socket() {
        let (agent, server) = answering("get", "200 OK", r#"{"checks":[]}"#);
        let checks: admin::Checks = get(&agent, "/v1/check").unwrap();
        assert_eq!(checks, admin::Checks::default());
        assert!(server.join().unwrap().starts_with("GET /v1/check HTTP/1.1"));
    }

    #[test]
    fn a_refusal_is_the_agents_sentence() {
        let (agent, server) = answering(
            "refusal",
            "404 Not Found",
            r#"{"error":"10.0.0.1:80 is no VIP"}"#,
        );
        let error = post::<admin::Checks>(&agent, "/v1/explain", &1).unwrap_err();
        server.join().unwrap();
        let Agent::Socket(socket) = agent else {
            panic!("a socket was asked")
        };
        assert_eq!(
            format!("{error:#}"),
            format!(
                "asking the agent at {} for /v1/explain: 10.0.0.1:80 is no VIP",
                socket.display()
            )
        );
    }

    #[test]
    fn an_answer_of_another_version_says_what_to_do() {
        let error = read::<admin::Status>(StatusCode::OK, b"{}").unwrap_err();
        assert!(format!("{error:#}").contains("use the lbctl of the agent's version"));
        let error = read::<admin::Status>(StatusCode::NOT_FOUND, b"no such path").unwrap_err();
        assert_eq!(
            error.to_string(),
            "refused with 404 Not Found; use the lbctl of the agent's version"
        );
    }

    #[test]
    fn without_an_agent_the_error_says_what_to_do() {
        let error = get::<admin::Checks>(&Agent::Socket("/nowhere/agent.sock".into()), "/v1/check")
            .unwrap_err()
            .root_cause()
            .to_string();
        assert!(error.contains("start the agent on this machine"), "{error}");
    }
}
