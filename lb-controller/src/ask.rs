//! Asking an agent over its admin socket (HTTP with JSON over a Unix socket): for `lbctl`, and as `lb-controller admin`, which
//! `lbctl` runs in the agent's pod. Moves bytes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::admin;

/// An agent answers from memory or reads its maps once: more than this is a hang.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Longest answer in bytes: twice the largest list of flows.
pub const ANSWER_BYTES_MAX: usize = 64 << 20;
/// What the program ends with when no agent answers.
const NO_ANSWER: u8 = 2;

/// The question.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Where the agent answers.
    #[arg(long, value_name = "PATH", default_value = admin::SOCKET_DEFAULT)]
    admin_socket: PathBuf,
    /// `GET` or `POST`.
    method: Method,
    /// As `/v1/status`.
    path: String,
    /// What is posted: JSON.
    body: Option<String>,
}

/// Asks, and prints the answer whatever it is. The exit code is 0 for an answer, 1 for a refusal, 2 if nobody answers.
#[expect(clippy::print_stdout, reason = "printing is what the command is for")]
pub async fn run(options: Options) -> ExitCode {
    let Options {
        admin_socket: socket,
        method,
        path,
        body,
    } = options;
    let answer = async {
        let stream = UnixStream::connect(&socket).await?;
        exchange(stream, method, &path, body.unwrap_or_default().into()).await
    };
    let answer = tokio::time::timeout(ANSWER_LIMIT, answer).await;
    let outcome = answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in time")));
    match outcome {
        Ok((status, body)) => {
            println!("{}", String::from_utf8_lossy(&body));
            ExitCode::from(u8::from(!status.is_success()))
        }
        Err(error) => {
            let socket = socket.display();
            eprintln!("lb-controller: asking the agent at {socket}: {error:#}; see that it runs");
            ExitCode::from(NO_ANSWER)
        }
    }
}

/// One request, one answer, one connection. Refusals are answers; an error says which step failed.
pub async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &str,
    body: Bytes,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .context("open HTTP")?;
    // It ends with the connection, which ends when `sender` and the answer are dropped.
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(body))
        .context("make the request")?;
    let answer = sender.send_request(request).await.context("send")?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
        .collect()
        .await
        .map_err(|error| anyhow::anyhow!("{error}"))
        .context("read the answer")?
        .to_bytes();
    connection.abort();
    Ok((status, body))
}
