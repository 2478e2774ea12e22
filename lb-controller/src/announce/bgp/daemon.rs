//! Has BIRD do what is wanted: writes its configuration, has it read that, and asks how its sessions are. Moves bytes and time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::answer::{ANSWER_LENGTH_MAX, Reply, ReplyError, Session, sessions};
use super::config::Config;
use super::password::Password;
use super::text::{Rendered, render};
use crate::announce::routes::TABLE_DEFAULT;

/// Name of the configuration in its directory.
const CONFIG: &str = "bird.conf";
/// Names of what it becomes by renaming: what a predecessor that was killed may have left.
const NEXT: &str = "bird.conf.new";
const FIRST: &str = "bird.conf.first";
/// Files that have passwords in them, or may have.
pub const FILES: [&str; 3] = [CONFIG, NEXT, FIRST];
/// Name of the control socket.
const SOCKET: &str = "bird.ctl";
/// BIRD is asked this often how its sessions are, and passwords are read again.
const PERIOD: Duration = Duration::from_secs(2);
/// Least time between two configurations: one for a burst of changes.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest wait for an answer: BIRD answers between two other things that it does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Where BIRD is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directory of its configuration and its socket.
    pub directory: PathBuf,
    /// Directory of passwords.
    pub passwords: Option<PathBuf>,
}

/// What BIRD does.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Told {
    /// What it was configured with last, passwords apart.
    pub config: Option<Config>,
    /// It answers.
    pub answers: bool,
    /// Which object is wrong, and what to change.
    pub faults: Vec<(String, String)>,
    /// How its sessions are.
    pub sessions: Vec<Session>,
}

/// Why BIRD has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens.
    #[error("BIRD can not be reached at {path}; see that it runs beside the agent")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke.
    #[error("BIRD went away")]
    Broken(#[source] io::Error),
    /// No answer.
    #[error("BIRD does not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// Not the answer that was wanted.
    #[error(transparent)]
    Reply(#[from] ReplyError),
}

/// Has BIRD do what is wanted until `stop`. Sessions and routes stay then. Nothing is touched before something is wanted.
pub async fn keep(
    settings: Settings,
    mut wanted: watch::Receiver<Option<Config>>,
    told: watch::Sender<Told>,
    stop: CancellationToken,
) {
    let mut daemon = Daemon {
        settings,
        written: None,
        configured: false,
    };
    loop {
        let config = wanted.borrow_and_update().clone();
        if let Some(config) = config {
            let now = daemon.bring_in_line(&config).await;
            tell(&told, now);
        }
        // What changes meanwhile is seen at once afterwards.
        if stop
            .run_until_cancelled(tokio::time::sleep(PAUSE))
            .await
            .is_none()
        {
            return;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PERIOD) => {}
        }
    }
}

/// Says what is new, and logs what has changed.
fn tell(told: &watch::Sender<Told>, now: Told) {
    told.send_if_modified(|before| {
        let is_up = |session: &&Session| session.state == ESTABLISHED;
        let up = |told: &Told| -> BTreeSet<String> {
            let up = told.sessions.iter().filter(is_up);
            up.map(|session| session.peer.clone()).collect()
        };
        let (were, are) = (up(before), up(&now));
        for peer in are.difference(&were) {
            tracing::info!(peer, "a BGP session is up");
        }
        for peer in were.difference(&are) {
            tracing::warn!(peer, "a BGP session is not up any more");
        }
        for (object, sentence) in &now.faults {
            if !before.faults.iter().any(|(_, said)| said == sentence) {
                tracing::warn!(object, "{sentence}");
            }
        }
        let is_new = *before != now;
        *before = now;
        is_new
    });
}

/// The state of a session that is up.
pub const ESTABLISHED: &str = "Established";

/// BIRD, as far as it is known.
struct Daemon {
    settings: Settings,
    /// What its file has.
    written: Option<Rendered>,
    /// It has read that.
    configured: bool,
}

impl Daemon {
    async fn bring_in_line(&mut self, config: &Config) -> Told {
        let (passwords, mut faults) = self.passwords(config);
        let rendered = render(config, &passwords);
        let asked = self.ask_all(rendered).await;
        let (answers, sessions) = match asked {
            Ok(sessions) => (true, sessions),
            Err(error) => {
                faults.push(("BIRD".to_owned(), sentence(&error)));
                (matches!(error, Fault::Ask(AskError::Reply(_))), Vec::new())
            }
        };
        Told {
            config: self.configured.then(|| config.clone()),
            answers,
            faults,
            sessions,
        }
    }

    /// Reads the passwords that peers name.
    fn passwords(&self, config: &Config) -> (BTreeMap<String, Password>, Vec<(String, String)>) {
        let mut passwords = BTreeMap::new();
        let mut faults = Vec::new();
        for peer in &config.peers {
            let Some(key) = &peer.password else { continue };
            match Password::read(self.settings.passwords.as_deref(), key) {
                Ok(password) => _ = passwords.insert(key.clone(), password),
                Err(error) => faults.push((format!("BGPPeer {}", peer.name), error.to_string())),
            }
        }
        (passwords, faults)
    }

    async fn ask_all(&mut self, rendered: Rendered) -> Result<Vec<Session>, Fault> {
        let directory = &self.settings.directory;
        if self.written.as_ref() != Some(&rendered) {
            self.configured = false;
            write(directory, &rendered.text).map_err(|source| Fault::Write {
                path: directory.join(CONFIG),
                source,
            })?;
        }
        let names = rendered.sessions.clone();
        self.written = Some(rendered);
        let socket = directory.join(SOCKET);
        let asked = async {
            if !self.configured {
                ask(&socket, "configure").await?;
                self.configured = true;
                tracing::info!("BIRD is configured");
            }
            ask(&socket, "show protocols all").await
        };
        match asked.await {
            Ok(reply) => Ok(sessions(&reply, &names)),
            Err(error) => {
                // Whoever answers next may have read an older file.
                self.configured = false;
                Err(error.into())
            }
        }
    }
}

/// Why BIRD does not do what is wanted.
#[derive(Debug, thiserror::Error)]
enum Fault {
    /// The directory can not be used.
    #[error("{path} can not be written")]
    Write { path: PathBuf, source: io::Error },
    /// BIRD does not do what it is asked for.
    #[error(transparent)]
    Ask(#[from] AskError),
}

fn sentence(error: &Fault) -> String {
    match error {
        Fault::Write { path, source } => {
            format!("{} can not be written: {source}", path.display())
        }
        Fault::Ask(AskError::Connect { source, .. } | AskError::Broken(source)) => {
            format!("{error}: {source}")
        }
        Fault::Ask(AskError::Silent | AskError::Reply(_)) => error.to_string(),
    }
}

/// Replaces the configuration.
fn write(directory: &Path, text: &str) -> io::Result<()> {
    make(directory)?;
    let path = directory.join(CONFIG);
    if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let new = directory.join(NEXT);
    create(&new, text)?;
    std::fs::rename(new, path)
}

/// Makes a configuration without sessions if there is none, so that BIRD can start before an agent says what is wanted. One that is
/// there stays: routers may be keeping routes for it.
pub fn prepare(directory: &Path) -> io::Result<()> {
    make(directory)?;
    let nothing = Config {
        table: TABLE_DEFAULT,
        router_id: NOBODY,
        peers: Vec::new(),
    };
    let new = directory.join(FIRST);
    create(&new, &render(&nothing, &BTreeMap::new()).text)?;
    let linked = std::fs::hard_link(&new, directory.join(CONFIG));
    std::fs::remove_file(new)?;
    match linked {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The name of a BIRD that speaks with no router.
const NOBODY: Ipv4Addr = Ipv4Addr::new(0, 0, 0, 1);

fn make(directory: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700).create(directory)
}

/// Writes a file for root's eyes only: configurations have passwords.
fn create(path: &Path, text: &str) -> io::Result<()> {
    // One that a predecessor has left may have other rights.
    _ = std::fs::remove_file(path);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
}

/// Asks BIRD one question.
pub async fn ask(socket: &Path, question: &str) -> Result<Reply, AskError> {
    let asked = tokio::time::timeout(ANSWER_TIMEOUT, asked(socket, question));
    asked.await.unwrap_or(Err(AskError::Silent))
}

async fn asked(socket: &Path, question: &str) -> Result<Reply, AskError> {
    let stream = UnixStream::connect(socket).await;
    let mut stream = stream.map_err(|source| AskError::Connect {
        path: socket.to_owned(),
        source,
    })?;
    let (reading, mut writing) = stream.split();
    let mut reading = BufReader::new(reading.take(ANSWER_LENGTH_MAX as u64));
    // It greets first.
    answer(&mut reading).await?;
    let question = format!("{question}\n");
    let written = writing.write_all(question.as_bytes()).await;
    written.map_err(AskError::Broken)?;
    answer(&mut reading).await
}

async fn answer(reading: &mut (impl AsyncBufReadExt + Unpin)) -> Result<Reply, AskError> {
    let mut reply = Reply::default();
    loop {
        let mut line = String::new();
        let read = reading.read_line(&mut line).await;
        let length = read.map_err(AskError::Broken)?;
        if length == 0 {
            let ended = io::ErrorKind::UnexpectedEof;
            return Err(AskError::Broken(ended.into()));
        }
        if reply.take(line.trim_end_matches('\n'))? {
            return Ok(reply);
        }
    }
}

#[cfg(test)]
mod tests;
