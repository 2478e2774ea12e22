//! A BIRD that is no BIRD: what is said to it, and what comes of its answers.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use super::*;
use crate::announce::bgp::config::Peer;

/// Answers `configure` as it is told, and notes the questions.
struct Fake {
    questions: Arc<Mutex<Vec<String>>>,
    serving: JoinHandle<()>,
}

impl Fake {
    fn start(directory: &Path, configured: &'static str) -> Self {
        let socket = directory.join(SOCKET);
        _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(socket).unwrap();
        let questions: Arc<Mutex<Vec<String>>> = Arc::default();
        let asked = Arc::clone(&questions);
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (reading, mut writing) = stream.split();
                writing
                    .write_all(b"0001 BIRD 2.0.12 ready.\n")
                    .await
                    .unwrap();
                let mut question = String::new();
                let mut reading = BufReader::new(reading);
                reading.read_line(&mut question).await.unwrap();
                let answer = match question.trim() {
                    "configure" => configured,
                    _ => {
                        "2002-Name\n1002-peer-tor BGP --- up 1796092618 Established\n1006-  BGP state:  Established\n \
                         Routes: 0 imported, 2 exported\n0000 \n"
                    }
                };
                asked.lock().unwrap().push(question.trim().to_owned());
                writing.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { questions, serving }
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.questions.lock().unwrap())
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

const GOOD: &str = "0002-Reading configuration from /x\n0003 Reconfigured\n";
const BAD: &str = "0002-Reading configuration from /x\n8002 /x:1:1 syntax error\n";

fn config(password: Option<&str>) -> Config {
    let tor = Peer {
        name: "tor".to_owned(),
        address: [10, 0, 0, 1].into(),
        port: None,
        asn: 64500.try_into().unwrap(),
        own_asn: 64501.try_into().unwrap(),
        source: None,
        hops: None,
        password: password.map(ToOwned::to_owned),
        hold_time: None,
        keepalive_time: None,
        bfd: None,
        graceful_restart: true,
        told: Vec::new(),
    };
    Config {
        table: 6081,
        router_id: [10, 0, 0, 11].into(),
        peers: vec![tor],
    }
}

fn daemon(directory: &Path) -> Daemon {
    Daemon {
        settings: Settings {
            directory: directory.join("bird"),
            passwords: Some(directory.join("passwords")),
        },
        written: None,
        configured: false,
    }
}

/// A directory with an empty one for BIRD, and one for passwords.
fn place() -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    for name in ["bird", "passwords"] {
        std::fs::create_dir(place.path().join(name)).unwrap();
    }
    place
}

#[tokio::test]
async fn bird_is_configured_once_and_then_only_asked() {
    let place = place();
    let fake = Fake::start(&place.path().join("bird"), GOOD);
    let mut daemon = daemon(place.path());
    let told = daemon.bring_in_line(&config(None)).await;
    assert_eq!(told.config, Some(config(None)));
    assert!(told.answers);
    assert_eq!(told.faults, []);
    let [session] = &told.sessions[..] else {
        panic!("{:?}", told.sessions);
    };
    assert_eq!((&*session.peer, &*session.state), ("tor", ESTABLISHED));
    assert_eq!(session.exported, 2);
    assert_eq!(fake.asked(), ["configure", "show protocols all"]);
    daemon.bring_in_line(&config(None)).await;
    assert_eq!(fake.asked(), ["show protocols all"]);
    let rights = std::fs::metadata(place.path().join("bird/bird.conf")).unwrap();
    assert_eq!(rights.permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_bird_that_comes_later_is_configured_then() {
    let place = place();
    let mut daemon = daemon(place.path());
    let told = daemon.bring_in_line(&config(None)).await;
    assert_eq!((told.answers, told.config), (false, None));
    let [(object, sentence)] = &told.faults[..] else {
        panic!("{:?}", told.faults);
    };
    assert_eq!(object, "BIRD");
    assert!(sentence.contains("see that it runs"), "{sentence}");
    assert!(
        place.path().join("bird/bird.conf").exists(),
        "it starts with it"
    );
    let fake = Fake::start(&place.path().join("bird"), GOOD);
    let told = daemon.bring_in_line(&config(None)).await;
    assert_eq!(told.config, Some(config(None)));
    drop(fake);
    // Another one in its place is told again.
    _ = std::fs::remove_file(place.path().join("bird").join(SOCKET));
    assert!(!daemon.bring_in_line(&config(None)).await.answers);
    let fake = Fake::start(&place.path().join("bird"), GOOD);
    daemon.bring_in_line(&config(None)).await;
    assert_eq!(fake.asked(), ["configure", "show protocols all"]);
}

#[tokio::test]
async fn a_refused_configuration_is_told_and_tried_again() {
    let place = place();
    let fake = Fake::start(&place.path().join("bird"), BAD);
    let mut daemon = daemon(place.path());
    let told = daemon.bring_in_line(&config(None)).await;
    assert_eq!((told.answers, told.config), (true, None));
    assert_eq!(
        told.faults,
        [(
            "BIRD".to_owned(),
            "BIRD says 8002: /x:1:1 syntax error".to_owned()
        )]
    );
    daemon.bring_in_line(&config(None)).await;
    assert_eq!(fake.asked(), ["configure", "configure"]);
}

#[tokio::test]
async fn a_password_that_changes_is_taken_and_one_that_is_missing_stops_its_peer_only() {
    let place = place();
    let _fake = Fake::start(&place.path().join("bird"), GOOD);
    let mut daemon = daemon(place.path());
    let text = || std::fs::read_to_string(place.path().join("bird/bird.conf")).unwrap();
    let told = daemon.bring_in_line(&config(Some("tor"))).await;
    let [(object, sentence)] = &told.faults[..] else {
        panic!("{:?}", told.faults);
    };
    assert_eq!(object, "BGPPeer tor");
    assert!(sentence.contains("bowline-bgp"), "{sentence}");
    assert!(!text().contains("protocol bgp"), "{}", text());
    for password in ["first", "second"] {
        std::fs::write(place.path().join("passwords/tor"), password).unwrap();
        let told = daemon.bring_in_line(&config(Some("tor"))).await;
        assert_eq!(told.faults, []);
        let line = format!("password \"{password}\";");
        assert!(text().contains(&line), "{}", text());
    }
}

#[tokio::test]
async fn nothing_is_written_before_something_is_wanted() {
    let place = place();
    let wanted = watch::Sender::new(None);
    let (told, mut heard) = watch::channel(Told::default());
    let stop = CancellationToken::new();
    let settings = daemon(place.path()).settings;
    let keeping = tokio::spawn(keep(settings, wanted.subscribe(), told, stop.clone()));
    tokio::task::yield_now().await;
    assert!(!place.path().join("bird/bird.conf").exists());
    wanted.send_replace(Some(config(None)));
    heard.changed().await.unwrap();
    assert!(place.path().join("bird/bird.conf").exists());
    stop.cancel();
    keeping.await.unwrap();
}

#[test]
fn a_bird_can_start_before_its_agent_and_what_is_there_stays() {
    let dir = tempfile::tempdir().unwrap();
    let directory = dir.path().join("bird");
    prepare(&directory).unwrap();
    let path = directory.join(CONFIG);
    let first = std::fs::read_to_string(&path).unwrap();
    assert!(first.contains("protocol device") && !first.contains("protocol bgp"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&directory), mode(&path)), (0o700, 0o600));
    write(&directory, "router id 192.0.2.1;").unwrap();
    prepare(&directory).unwrap();
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        "router id 192.0.2.1;"
    );
    let names = std::fs::read_dir(&directory).unwrap();
    assert_eq!(names.count(), 1, "nothing else is left");
}
