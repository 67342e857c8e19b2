use std::net::{Shutdown, TcpListener};
use std::os::fd::AsRawFd;

use nix::sys::socket::{setsockopt, sockopt::Linger};
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

use super::certificate::certificate;
use super::*;
use crate::host::Places;

const LIMIT: Duration = Duration::from_secs(10);

fn host() -> Host {
    Host::new("/", Clock::system(), Places::default())
}

/// A server for one connection, which `serve` has; its port.
fn server(serve: impl FnOnce(TcpStream) + Send + 'static) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || serve(listener.accept().unwrap().0));
    Target { host: "127.0.0.1".to_owned(), port, tls: true }
}

fn tls(until_year: i32, versions: &[&'static rustls::SupportedProtocolVersion]) -> Arc<ServerConfig> {
    let key = KeyPair::generate().unwrap();
    let names = ["kubernetes".to_owned(), "10.96.0.1".to_owned()];
    let mut parameters = CertificateParams::new(names).unwrap();
    parameters.not_before = date_time_ymd(2020, 1, 1);
    parameters.not_after = date_time_ymd(until_year, 1, 1);
    let certificate = parameters.self_signed(&key).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    Arc::new(config)
}

/// Reads the request, says this, and hangs up.
fn answering(config: Arc<ServerConfig>, says: &'static str) -> Target {
    server(move |mut stream| {
        let mut connection = rustls::ServerConnection::new(config).unwrap();
        let mut tls = rustls::Stream::new(&mut connection, &mut stream);
        let mut request = [0; 1024];
        let length = tls.read(&mut request).unwrap();
        assert!(request[..length].starts_with(b"GET /livez HTTP/1.1\r\n"));
        assert!(!String::from_utf8_lossy(&request[..length]).to_ascii_lowercase().contains("authorization"));
        tls.write_all(says.as_bytes()).unwrap();
        connection.send_close_notify();
        connection.complete_io(&mut stream).unwrap();
        stream.shutdown(Shutdown::Both).ok();
    })
}

const OK: &str = "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn targets() {
    let shown = |text: &str| Target::parse(text).map(|target| (target.to_string(), target.tls));
    let some = |text: &str, tls| Some((text.to_owned(), tls));
    assert_eq!(shown("https://api.example.org:6443/"), some("api.example.org:6443", true));
    assert_eq!(shown("192.0.2.10:6443"), some("192.0.2.10:6443", true));
    assert_eq!(shown("https://[fd00::1]"), some("[fd00::1]:443", true));
    assert_eq!(shown("http://127.0.0.1:8080"), some("127.0.0.1:8080", false));
    for none in ["", "ftp://x", "https://", "a b", "x:0", "x:70000", "[fd00::1", "https://user@x"] {
        assert_eq!(shown(none), None, "{none}");
    }
}

#[test]
fn a_server_that_is_well_each_step_timed() {
    for versions in [&[&rustls::version::TLS13], &[&rustls::version::TLS12]] {
        let target = answering(tls(2099, versions), OK);
        let dialled = dial(&host(), &target, LIMIT);
        let answer = dialled.answer.expect("an answer");
        assert_eq!(answer.status, 200);
        // The example of RFC 9110, 5.6.7.
        assert_eq!(answer.date, Some("1994-11-06T08:49:37Z".parse().unwrap()));
        assert!(dialled.connect_seconds.is_some() && dialled.tls_seconds.is_some());
        assert!(dialled.answer_seconds.is_some() && dialled.resolve_seconds.is_none());
        let certificate = dialled.certificate.expect("its certificate");
        assert_eq!(certificate.names, ["kubernetes", "10.96.0.1"]);
        assert_eq!(certificate.not_after, Some("2099-01-01T00:00:00Z".parse().unwrap()));
    }
}

#[test]
fn an_expired_certificate_is_read_and_the_answer_too() {
    let target = answering(tls(2021, &[&rustls::version::TLS13]), "HTTP/1.1 401 Unauthorized\r\n\r\n");
    let dialled = dial(&host(), &target, LIMIT);
    assert_eq!(dialled.certificate.unwrap().not_after, Some("2021-01-01T00:00:00Z".parse().unwrap()));
    let answer = dialled.answer.unwrap();
    assert_eq!((answer.status, answer.date), (401, None));
}

#[test]
fn a_server_that_is_not_well_says_which_check_failed() {
    let says = "HTTP/1.1 500 Internal Server Error\r\n\r\n[+]ping ok\n[-]etcd failed: reason withheld\n";
    let dialled = dial(&host(), &answering(tls(2099, &[&rustls::version::TLS13]), says), LIMIT);
    let answer = dialled.answer.unwrap();
    assert_eq!(answer.status, 500);
    assert!(answer.body.contains("[-]etcd failed"), "{}", answer.body);
}

fn failure(target: &Target, limit: Duration) -> (Step, Why) {
    let dialled = dial(&host(), target, limit);
    assert_eq!(dialled.answer, None);
    let error = dialled.error.unwrap();
    (error.step, error.why)
}

#[test]
fn each_failure_is_its_own() {
    let short = Duration::from_millis(300);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let refused = Target { host: "127.0.0.1".to_owned(), port: closed, tls: true };
    assert_eq!(failure(&refused, LIMIT), (Step::Connect, Why::Refused));

    // It accepts, and speaks of something else.
    let ssh = server(|mut stream| {
        stream.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n").unwrap();
        stream.read_to_end(&mut Vec::new()).ok();
    });
    assert_eq!(failure(&ssh, LIMIT), (Step::Tls, Why::Tls));

    // Nobody accepts: the kernel has connected us, and the handshake hangs.
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let hung = server(move |stream| {
        held.recv().ok();
        drop(stream);
    });
    assert_eq!(failure(&hung, short), (Step::Tls, Why::TimedOut));
    drop(hold);

    let reset = server(|mut stream| {
        stream.read_exact(&mut [0; 16]).unwrap();
        setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
        assert!(stream.as_raw_fd() >= 0);
    });
    assert_eq!(failure(&reset, LIMIT), (Step::Tls, Why::Reset));

    // It hangs after the handshake.
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let config = tls(2099, &[&rustls::version::TLS13]);
    let hung = server(move |mut stream| {
        let mut connection = rustls::ServerConnection::new(config).unwrap();
        rustls::Stream::new(&mut connection, &mut stream).read_exact(&mut [0; 16]).unwrap();
        held.recv().ok();
    });
    assert_eq!(failure(&hung, Duration::from_secs(2)), (Step::Http, Why::TimedOut));
    drop(hold);

    let gibberish = answering(tls(2099, &[&rustls::version::TLS13]), "220 mail.example ESMTP\r\n");
    assert_eq!(failure(&gibberish, LIMIT), (Step::Http, Why::NotHttp));
    let silent = answering(tls(2099, &[&rustls::version::TLS13]), "");
    assert_eq!(failure(&silent, LIMIT), (Step::Http, Why::NotHttp));
}

#[test]
fn a_server_that_trickles_is_given_up_in_time() {
    let trickle = server(|mut stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").unwrap();
        while stream.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let target = Target { tls: false, ..trickle };
    let dialled = dial(&host(), &target, Duration::from_millis(400));
    assert!((0.4..5.0).contains(&dialled.total_seconds), "{dialled:?}");
    assert_eq!(dialled.error.map(|error| error.why), Some(Why::TimedOut));
}

#[test]
fn a_name_is_found_in_etc_hosts_and_without_a_nameserver_it_is_not_resolved() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("etc")).unwrap();
    std::fs::write(root.path().join("etc/hosts"), "127.0.0.1 localhost\n127.0.0.1 api.lab\n").unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let served = answering(tls(2099, &[&rustls::version::TLS13]), OK);
    let named = Target { host: "api.lab".to_owned(), ..served };
    let dialled = dial(&host, &named, LIMIT);
    assert_eq!(dialled.answer.unwrap().status, 200);
    assert!(dialled.resolve_seconds.is_some());
    let unknown = Target { host: "other.lab".to_owned(), ..named };
    let error = dial(&host, &unknown, LIMIT).error.unwrap();
    assert_eq!((error.step, error.why), (Step::Resolve, Why::NameNotResolved));
    assert!(error.error.contains("/etc/resolv.conf"), "{}", error.error);
    // A nameserver that is silent: nobody answers for 192.0.2.0/24, where a packet can leave at all.
    std::fs::write(root.path().join("etc/resolv.conf"), "options edns0\n").unwrap();
    let error = dial(&host, &unknown, LIMIT).error.unwrap();
    assert!(error.error.contains("no nameserver"), "{}", error.error);
}

proptest! {
    #[test]
    fn a_cut_head_is_no_answer(cut in 0..OK.len()) {
        if let Ok(Some(head)) = head(&OK.as_bytes()[..cut]) {
            prop_assert_eq!(head.status, 200);
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>, text in "\\PC{0,60}") {
        head(&bytes).ok();
        certificate(&bytes);
        http_date(&text);
    }
}
