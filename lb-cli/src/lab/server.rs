//! `lbctl lab-server`: what runs in the lab's pods. Says in every answer which pod it is and whom it sees; see
//! [`super::wire`] for the words.

use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufStream,
};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::wire::{self, Who};
use crate::Outcome;

/// Arguments of `lbctl lab-server`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the pod.
    #[arg(long)]
    pod: String,
    /// UID of the pod.
    #[arg(long)]
    uid: String,
    /// Ports to serve TCP on.
    #[arg(long, value_delimiter = ',')]
    tcp: Vec<u16>,
    /// Ports to serve UDP on.
    #[arg(long, value_delimiter = ',')]
    udp: Vec<u16>,
}

/// Connections that wait to be accepted: a burst of the whole lab fits.
const BACKLOG: u32 = 4_096;

/// Serves until killed.
pub(crate) fn run(args: Args) -> anyhow::Result<Outcome> {
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")?;
    let Args { pod, uid, tcp, udp } = args;
    let me = Arc::new(Me { pod, uid });
    runtime.block_on(async {
        let mut servers = tokio::task::JoinSet::new();
        for port in tcp {
            let listener = listen(port).with_context(|| format!("listen on TCP port {port}"))?;
            servers.spawn(accept(listener, Arc::clone(&me)));
        }
        for port in udp {
            let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).await;
            let socket = socket.with_context(|| format!("listen on UDP port {port}"))?;
            servers.spawn(answer_datagrams(socket, Arc::clone(&me)));
        }
        // The lab waits for this line.
        writeln!(std::io::stdout(), "ready").context("say that all is ready")?;
        while let Some(ended) = servers.join_next().await {
            ended.context("a server ended")??;
        }
        Ok(Outcome::Well)
    })
}

/// As many open files as the kernel lets us have. Less is no error yet: the first connection that finds none says so.
pub(crate) fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

#[derive(Debug)]
struct Me {
    pod: String,
    uid: String,
}

impl Me {
    fn who(&self, client: SocketAddr) -> Who {
        Who {
            pod: self.pod.clone(),
            uid: self.uid.clone(),
            client: wire::plain(client),
        }
    }
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    socket.bind((Ipv6Addr::UNSPECIFIED, port).into())?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, me: Arc<Me>) -> anyhow::Result<()> {
    loop {
        let (stream, client) = listener.accept().await.context("accept a connection")?;
        let me = Arc::clone(&me);
        tokio::spawn(async move {
            // A client that goes away is no failure of the server; the client counts what it misses.
            let _ = serve(stream, &me.who(client)).await;
        });
    }
}

async fn serve(stream: TcpStream, who: &Who) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufStream::new(stream);
    loop {
        let mut line = String::new();
        if (&mut stream)
            .take(wire::LINE_MAX)
            .read_line(&mut line)
            .await?
            == 0
        {
            return Ok(());
        }
        let mut words = line.split_whitespace();
        let (verb, argument) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let count = argument.parse().unwrap_or(0);
        match verb {
            "who" => {
                stream
                    .write_all(format!("{}\n", who.line()).as_bytes())
                    .await?;
            }
            "ping" => {
                stream
                    .write_all(format!("pong {argument} {}\n", who.uid).as_bytes())
                    .await?;
            }
            "send" => send(&mut stream, count).await?,
            "take" => {
                let verdict = if take(&mut stream, count).await? {
                    "good"
                } else {
                    "corrupt"
                };
                stream
                    .write_all(format!("taken {count} {verdict}\n").as_bytes())
                    .await?;
            }
            "GET" => return answer_http(&mut stream, who).await,
            _ => {
                stream
                    .write_all(b"say who, ping N, send N, take N or GET\n")
                    .await?;
            }
        }
        stream.flush().await?;
    }
}

/// Writes bytes of the pattern.
pub(crate) async fn send(
    stream: &mut (impl AsyncWrite + Unpin),
    count: u64,
) -> std::io::Result<()> {
    let mut sent = 0;
    while sent < count {
        let part = usize::try_from(count - sent).unwrap_or(usize::MAX);
        let bytes = wire::pattern(sent, part);
        stream.write_all(bytes).await?;
        sent += bytes.len() as u64;
    }
    stream.flush().await
}

/// Reads so many bytes, and says whether they are those of the pattern.
pub(crate) async fn take(
    stream: &mut (impl AsyncBufRead + Unpin),
    count: u64,
) -> std::io::Result<bool> {
    let mut taken = 0;
    let mut good = true;
    while taken < count {
        let bytes = stream.fill_buf().await?;
        if bytes.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let part = bytes
            .len()
            .min(usize::try_from(count - taken).unwrap_or(usize::MAX));
        good &= wire::is_pattern(&bytes[..part], taken);
        stream.consume(part);
        taken += part as u64;
    }
    Ok(good)
}

async fn answer_http(stream: &mut BufStream<TcpStream>, who: &Who) -> std::io::Result<()> {
    loop {
        let mut header = String::new();
        let read = (&mut *stream)
            .take(wire::LINE_MAX)
            .read_line(&mut header)
            .await?;
        if read == 0 || header.trim_end().is_empty() {
            break;
        }
    }
    let body = format!("pod {} ({}) sees you as {}\n", who.pod, who.uid, who.client);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.flush().await?;
    stream.shutdown().await
}

async fn answer_datagrams(socket: UdpSocket, me: Arc<Me>) -> anyhow::Result<()> {
    let mut buffer = vec![0; 2048];
    loop {
        // An ICMP error of an earlier reply is reported here and is nobody's failure.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let mut reply = buffer[..length].to_vec();
        reply.push(b' ');
        reply.extend(me.who(client).line().bytes());
        let _ = socket.send_to(&reply, client).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    async fn talk(request: &[u8]) -> Vec<u8> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let me = Me {
            pod: "web-1".to_owned(),
            uid: "u-1".to_owned(),
        };
        let server = tokio::spawn(accept(listener, Arc::new(me)));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        server.abort();
        answer
    }

    #[tokio::test]
    async fn every_answer_names_the_pod() {
        let answer = String::from_utf8(talk(b"who\nping 7\n").await).unwrap();
        let mut lines = answer.lines();
        assert_eq!(Who::parse(lines.next().unwrap()).unwrap().uid, "u-1");
        assert_eq!(lines.next(), Some("pong 7 u-1"));
    }

    #[tokio::test]
    async fn transfers_are_checked_both_ways() {
        let mut request = b"take 300\n".to_vec();
        request.extend(wire::pattern(0, 300));
        request.extend(b"send 100000\n");
        let answer = talk(&request).await;
        let (line, bytes) = answer.split_at(b"taken 300 good\n".len());
        assert_eq!(line, b"taken 300 good\n");
        assert_eq!(bytes.len(), 100_000);
        assert!(wire::is_pattern(bytes, 0));
    }

    #[tokio::test]
    async fn a_browser_is_answered() {
        let answer = String::from_utf8(talk(b"GET / HTTP/1.1\r\nHost: vip\r\n\r\n").await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(
            answer.contains("pod web-1 (u-1) sees you as 127.0.0.1:"),
            "{answer}"
        );
    }
}
