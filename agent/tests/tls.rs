//! The API over TLS: who is let in, who is not, and what changes while it runs. Certificates are made by the test.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test stops at what it did not expect"
)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodewhy_agent::board::Board;
use nodewhy_agent::host::{Host, Places};
use nodewhy_agent::node::Identity;
use nodewhy_agent::serve::{Api, CredentialFiles, Listen, Listeners};
use nodewhy_clock::Clock;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use support::Response;

/// An authority, and whom it vouches for.
struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, PEM.
#[derive(Clone)]
struct Pass {
    certificate: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Authority(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn pass(&self, name: &str, until_year: i32) -> Pass {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(until_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        Pass { certificate: params.signed_by(&key, &self.0).unwrap().pem(), key: key.serialize_pem() }
    }
}

/// As Kubernetes mounts a Secret: the files are links through `..data`, which is swapped.
struct Secret {
    folder: tempfile::TempDir,
    version: std::cell::Cell<u32>,
}

impl Secret {
    fn new(files: &[(&str, &str)]) -> Secret {
        let secret = Secret { folder: tempfile::tempdir().unwrap(), version: 0.into() };
        secret.swap(files);
        for (name, _) in files {
            symlink(Path::new("..data").join(name), secret.folder.path().join(name)).unwrap();
        }
        secret
    }

    fn swap(&self, files: &[(&str, &str)]) {
        let version = self.version.replace(self.version.get() + 1);
        let (folder, name) = (self.folder.path(), format!("..version{version}"));
        std::fs::create_dir(folder.join(&name)).unwrap();
        for (file, text) in files {
            let path = folder.join(&name).join(file);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        }
        symlink(&name, folder.join("..data_tmp")).unwrap();
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        Some(self.folder.path().join(name))
    }
}

fn start(files: CredentialFiles) -> SocketAddr {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let clock = Clock::system();
            let host = Host::new("/nonexistent", clock.clone(), Places::default());
            let identity = Identity::read(&host, Some("worker-7"));
            let board = Arc::new(Board::new("worker-7".to_owned(), None, clock, &[], |_| true));
            let api = Arc::new(Api::new(board, identity, &host).unwrap());
            let address = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
            let listen = Listen { socket: None, address, metrics: None, files };
            let listeners = Listeners::bind(&listen).await.unwrap();
            sender.send(listeners.address().unwrap()).unwrap();
            listeners.serve(api).await;
        });
    });
    receiver.recv().unwrap()
}

type Connection = StreamOwned<ClientConnection, TcpStream>;

fn connect(address: SocketAddr, authority: &Authority, pass: Option<&Pass>) -> Connection {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match pass {
        None => builder.with_no_client_auth(),
        Some(pass) => {
            let chain = vec![CertificateDer::from_pem_slice(pass.certificate.as_bytes()).unwrap()];
            let key = PrivateKeyDer::from_pem_slice(pass.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    };
    let name = "localhost".try_into().unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), stream)
}

fn ask(
    address: SocketAddr,
    authority: &Authority,
    pass: Option<&Pass>,
    headers: &str,
) -> Result<Response, std::io::Error> {
    let mut stream = connect(address, authority, pass);
    write!(stream, "GET /api/v1/node HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok(Response { status, head: head.to_owned(), body: body.to_owned() })
}

/// What a client is told that is not let in. It sends no request: one that nobody reads would reset the connection, and
/// the alert with it.
fn refusal(address: SocketAddr, authority: &Authority, pass: Option<&Pass>) -> String {
    let mut stream = connect(address, authority, pass);
    let shaken = stream.conn.complete_io(&mut stream.sock);
    let told = shaken.and_then(|_| stream.read(&mut [0; 64]));
    told.unwrap_err().to_string()
}

fn wait_for(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(15);
    while !done() {
        assert!(Instant::now() < end, "it never came: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn only_who_shows_a_certificate_of_the_right_authority_is_let_in() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let server = ours.pass("agent", 2100);
    let secret =
        Secret::new(&[("tls.crt", &server.certificate), ("tls.key", &server.key), ("ca.crt", &ours.pem())]);
    let address = start(CredentialFiles {
        token: None,
        certificate: secret.path("tls.crt"),
        key: secret.path("tls.key"),
        client_ca: secret.path("ca.crt"),
    });
    let good = ours.pass("aggregator", 2100);
    assert_eq!(ask(address, &ours, Some(&good), "").unwrap().json()["id"]["name"], "worker-7");
    let refused = |pass: Option<&Pass>| refusal(address, &ours, pass);
    assert!(refused(None).contains("CertificateRequired"), "{}", refused(None));
    let wrong = refused(Some(&other.pass("aggregator", 2100)));
    assert!(wrong.contains("UnknownCA") || wrong.contains("DecryptError"), "{wrong}");
    let expired = refused(Some(&ours.pass("aggregator", 2020)));
    assert!(expired.contains("CertificateExpired"), "{expired}");
    // A client that trusts another authority does not take this server for the agent.
    let untrusted = refusal(address, &other, Some(&good));
    assert!(untrusted.contains("invalid peer certificate"), "{untrusted}");
}

#[test]
fn plain_http_is_told_to_speak_tls_and_rubbish_ends() {
    let ours = Authority::new("ours");
    let server = ours.pass("agent", 2100);
    let secret =
        Secret::new(&[("tls.crt", &server.certificate), ("tls.key", &server.key), ("ca.crt", &ours.pem())]);
    let address = start(CredentialFiles {
        token: None,
        certificate: secret.path("tls.crt"),
        key: secret.path("tls.key"),
        client_ca: secret.path("ca.crt"),
    });
    let plain = support::ask(TcpStream::connect(address).unwrap(), "GET", "/metrics", "");
    assert_eq!(plain.status, 400);
    assert_eq!(plain.json()["detail"], "this address speaks TLS: ask with https://");
    // A record that is no handshake: an alert of TLS, and the end.
    let mut rubbish = TcpStream::connect(address).unwrap();
    rubbish.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    rubbish.write_all(&[22, 3, 1, 0, 4, 255, 255, 255, 255]).unwrap();
    let mut said = Vec::new();
    rubbish.read_to_end(&mut said).ok();
    assert!(said.first().is_none_or(|first| *first == 21), "{said:?}");
}

#[test]
fn clients_that_begin_a_handshake_and_say_no_more_hold_up_nobody() {
    let ours = Authority::new("ours");
    let server = ours.pass("agent", 2100);
    let secret =
        Secret::new(&[("tls.crt", &server.certificate), ("tls.key", &server.key), ("ca.crt", &ours.pem())]);
    let address = start(CredentialFiles {
        token: None,
        certificate: secret.path("tls.crt"),
        key: secret.path("tls.key"),
        client_ca: secret.path("ca.crt"),
    });
    let good = ours.pass("aggregator", 2100);
    // Three times as many as there are places, half of them silent, half in the middle of a record.
    let silent: Vec<TcpStream> = (0..192)
        .map(|index| {
            let mut stream = TcpStream::connect(address).unwrap();
            if index % 2 == 0 {
                stream.write_all(&[22, 3, 1]).unwrap();
            }
            stream
        })
        .collect();
    let before = Instant::now();
    for _ in 0..3 {
        assert_eq!(ask(address, &ours, Some(&good), "").unwrap().status, 200);
    }
    assert!(before.elapsed() < Duration::from_secs(3), "it took {:?}", before.elapsed());
    // Each of them is hung up on, whatever it does.
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let mut said = Vec::new();
        let ended = stream.read_to_end(&mut said);
        assert!(
            !ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock),
            "one is still there"
        );
    }
}

#[test]
fn certificate_authority_and_token_change_while_it_runs() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let token = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let (first, second) = (token("first-0123456789"), token("second-0123456789"));
    let (old_server, new_server) = (old.pass("agent", 2100), new.pass("agent", 2100));
    let secret = Secret::new(&[
        ("tls.crt", &old_server.certificate),
        ("tls.key", &old_server.key),
        ("ca.crt", &old.pem()),
        ("token", "first-0123456789\n"),
    ]);
    let address = start(CredentialFiles {
        token: secret.path("token"),
        certificate: secret.path("tls.crt"),
        key: secret.path("tls.key"),
        client_ca: secret.path("ca.crt"),
    });
    let (old_pass, new_pass) = (old.pass("aggregator", 2100), new.pass("aggregator", 2100));
    // Both are asked for where both are set.
    assert_eq!(ask(address, &old, Some(&old_pass), "").unwrap().status, 401);
    assert_eq!(ask(address, &old, Some(&old_pass), &first).unwrap().status, 200);
    let mut stream = connect(address, &old, Some(&old_pass));
    write!(stream, "GET /api/v1/events HTTP/1.1\r\nHost: x\r\n{first}\r\n").unwrap();
    let mut head = [0; 12];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");

    // A key that is not the certificate's: the old ones stay in use.
    secret.swap(&[
        ("tls.crt", &new_server.certificate),
        ("tls.key", &old_server.key),
        ("ca.crt", &old.pem()),
        ("token", "first-0123456789\n"),
    ]);
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(ask(address, &old, Some(&old_pass), &first).unwrap().status, 200);

    secret.swap(&[
        ("tls.crt", &new_server.certificate),
        ("tls.key", &new_server.key),
        ("ca.crt", &new.pem()),
        ("token", "second-0123456789\n"),
    ]);
    wait_for("the new ones", || {
        ask(address, &new, Some(&new_pass), &second).is_ok_and(|answer| answer.status == 200)
    });
    assert_eq!(ask(address, &new, Some(&new_pass), &first).unwrap().status, 401);
    assert!(ask(address, &new, Some(&old_pass), &second).is_err());
    // The stream of one who is no longer let in has ended.
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest);
    assert!(!ended.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "it goes on");
}
