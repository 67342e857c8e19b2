use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::thread::JoinHandle;

use rustls_pki_types::PrivateKeyDer;

use super::*;
use crate::host::Places;

const LIMIT: Duration = Duration::from_secs(5);

fn host() -> Host {
    Host::new("/", Clock::system(), Places::default())
}

fn request(address: SocketAddr) -> Request<'static> {
    Request { address, path: "/metrics", tls: None, token: None, limit: LIMIT, most_bytes: 1 << 20 }
}

/// Takes one connection, reads the head of the request and answers with this.
fn serve(answer: &'static [u8], hold: Duration) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let head = head(&mut stream);
        stream.write_all(answer).unwrap();
        std::thread::sleep(hold);
        head
    });
    (address, server)
}

fn head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).unwrap() == 0 {
            break;
        }
        head.extend(byte);
    }
    String::from_utf8(head).unwrap()
}

const NOW: Duration = Duration::ZERO;

#[test]
fn bodies_of_every_framing() {
    // The first is the recorded answer of kubelet 1.32.6 on 10248; the others are RFC 9112's framings of the same body.
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nDate: Sat, 21 Nov 2026 07:47:39 GMT\r\nContent-Length: 2\r\n\r\nok"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nok",
    ] {
        let (address, server) = serve(answer, NOW);
        assert_eq!(host().fetch_text(&request(address)).unwrap(), "ok");
        let head = server.join().unwrap().to_lowercase();
        assert!(head.starts_with("get /metrics http/1.1\r\n") && head.contains("connection: close"), "{head}");
        assert!(!head.contains("authorization"));
    }
    let (address, _) =
        serve(b"HTTP/1.1 200 OK\r\nDate: Sat, 21 Nov 2026 07:47:39 GMT\r\nContent-Length: 2\r\n\r\nok", NOW);
    let fetched = host().fetch(&request(address), &mut |_| {}).unwrap();
    assert_eq!(fetched.headers.get("date").unwrap(), "Sat, 21 Nov 2026 07:47:39 GMT");
    assert!(fetched.connected <= fetched.answered && fetched.answered <= fetched.took);
}

#[test]
fn each_end_has_its_own_name() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    assert!(matches!(host().fetch_text(&request(free)), Err(FetchError::Refused { .. })));

    let (address, _) = serve(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\nForbidden", NOW);
    let error = host().fetch_text(&request(address)).unwrap_err();
    assert_eq!(error.to_string(), format!("http://{address}/metrics answered 403: Forbidden"));

    // Cut: what came is no whole body.
    let (address, _) = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok", NOW);
    assert!(matches!(host().fetch_text(&request(address)), Err(FetchError::Broken { step: Step::Body, .. })));
    let (address, _) = serve(b"SSH-2.0-OpenSSH_9.2\r\n", NOW);
    assert!(matches!(
        host().fetch_text(&request(address)),
        Err(FetchError::Broken { step: Step::Answer, .. })
    ));

    let (address, _) = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlong", NOW);
    let bounded = Request { most_bytes: 3, ..request(address) };
    assert!(matches!(host().fetch_text(&bounded), Err(FetchError::TooLong { most_bytes: 3, .. })));
}

#[test]
fn a_server_that_hangs_is_given_up_at_its_step() {
    let limit = Duration::from_millis(200);
    let hold = Duration::from_secs(1);
    for (answer, at) in
        [(&b""[..], Step::Answer), (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlo", Step::Body)]
    {
        let (address, _) = serve(answer, hold);
        let clock = Clock::system();
        let begun = clock.since_boot();
        let error = host().fetch_text(&Request { limit, ..request(address) }).unwrap_err();
        let FetchError::TimedOut { step, .. } = &error else { panic!("{error}") };
        assert_eq!(*step, at, "{error}");
        assert!(clock.since_boot() - begun < Duration::from_secs(1));
    }
    let trust = Trust::anybody().unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let error = host().fetch_text(&Request { limit, tls: Some(&trust), ..request(address) }).unwrap_err();
    assert!(matches!(error, FetchError::TimedOut { step: Step::Tls, .. }), "{error}");
}

#[test]
fn a_token_is_read_each_time_and_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    assert!(Token::read(&path).unwrap_err().to_string().contains("No such file"));
    std::fs::write(&path, "\n").unwrap();
    assert!(Token::read(&path).unwrap_err().to_string().ends_with("it is empty"));
    std::fs::write(&path, "a\0b").unwrap();
    assert!(Token::read(&path).is_err());
    std::fs::write(&path, "sesame\n").unwrap();
    let token = Token::read(&path).unwrap();
    assert!(!format!("{token:?}").contains("sesame"));
    let (address, server) = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", NOW);
    host().fetch_text(&Request { token: Some(&token), ..request(address) }).unwrap();
    assert!(server.join().unwrap().contains("authorization: Bearer sesame\r\n"));
}

/// A TLS server with this certificate of its own signature, which answers one request.
fn serve_tls(names: &[&str]) -> (SocketAddr, String, JoinHandle<()>) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let pem = made.cert.pem();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let session = rustls::ServerConnection::new(Arc::new(config)).unwrap();
        let mut stream = rustls::StreamOwned::new(session, stream);
        let mut byte = [0];
        // A client that does not believe us hangs up here.
        if stream.read(&mut byte).is_ok_and(|read| read == 1) {
            head(&mut stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
            stream.conn.send_close_notify();
            stream.flush().unwrap();
        }
    });
    (address, pem, server)
}

#[test]
fn whom_tls_believes() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.crt");
    let get = |address, trust: &Trust| host().fetch_text(&Request { tls: Some(trust), ..request(address) });

    let (address, _, server) = serve_tls(&["node-1"]);
    assert_eq!(get(address, &Trust::anybody().unwrap()).unwrap(), "ok");
    server.join().unwrap();

    let (address, pem, server) = serve_tls(&["127.0.0.1"]);
    std::fs::write(&ca, pem).unwrap();
    assert_eq!(get(address, &Trust::authorities(&ca).unwrap()).unwrap(), "ok");
    server.join().unwrap();

    let (address, _, server) = serve_tls(&["127.0.0.1"]);
    let error = get(address, &Trust::authorities(&ca).unwrap()).unwrap_err();
    assert!(matches!(&error, FetchError::Tls { error, .. } if error.contains("certificate")), "{error}");
    server.join().unwrap();

    std::fs::write(&ca, "garbage").unwrap();
    assert!(Trust::authorities(&ca).unwrap_err().to_string().contains("holds no certificate"));
    assert!(Trust::authorities(folder.path()).is_err());

    // No TLS where TLS was expected: Go's server says so in plain HTTP, as soon as it has seen the first bytes.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.read_exact(&mut [0]).unwrap();
        stream
            .write_all(b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n")
            .unwrap();
    });
    let error = get(address, &Trust::anybody().unwrap()).unwrap_err();
    assert!(matches!(error, FetchError::Tls { .. }), "{error}");
    server.join().unwrap();
}
