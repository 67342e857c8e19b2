//! A dial as the kubelet would make it: name, TCP, TLS, `GET /livez`. Each step is timed, each failure is typed. No
//! credentials are sent, and none are read. Blocking, with one deadline for the whole: it runs on a thread of its own.
//!
//! The certificate is not checked for trust: a server that a stranger put there is an answer too, and nothing is told
//! to it. What it shows (names, from when to when) is read and told.

mod certificate;
mod target;

pub use certificate::Certificate;
pub use target::Target;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use nodewhy_clock::{Clock, Stamp};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use certificate::Seen;

use super::Host;
use super::dns::{self, Kind, Question, Reply};

/// No head of an answer is longer.
const LONGEST_HEAD_BYTES: usize = 16 * 1024;
/// So many addresses of one name are tried.
const MOST_TRIED: usize = 3;
const NAMESERVER_LIMIT: Duration = Duration::from_secs(2);

/// The step in which it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The name's addresses.
    Resolve,
    /// TCP.
    Connect,
    /// The TLS handshake.
    Tls,
    /// The request and the head of its answer.
    Http,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The name has no address, or no nameserver answered.
    NameNotResolved,
    /// No route, or a router or a rule of ours says that it cannot be reached.
    NoRoute,
    /// Nobody listens there, or a rule rejects it.
    Refused,
    /// Nothing came in time.
    TimedOut,
    /// The connection was torn down.
    Reset,
    /// It speaks no TLS, or refused ours.
    Tls,
    /// It speaks no HTTP, or hung up without an answer.
    NotHttp,
    /// Another word of the kernel's: no descriptor left.
    Failed,
}

impl Why {
    /// As it stands in labels and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Why::NameNotResolved => "name_not_resolved",
            Why::NoRoute => "no_route",
            Why::Refused => "refused",
            Why::TimedOut => "timed_out",
            Why::Reset => "reset",
            Why::Tls => "tls",
            Why::NotHttp => "not_http",
            Why::Failed => "failed",
        }
    }
}

/// How a dial failed.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct DialError {
    /// In which step.
    pub step: Step,
    /// Why.
    pub why: Why,
    /// In words.
    pub error: String,
}

/// The head of the answer.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Answer {
    /// 200; 401 and 403 are answers of a server that lets nobody ask without a name.
    pub status: u16,
    /// Its `Date`, to the second.
    pub date: Option<Timestamp>,
    /// Our clock when the answer was half on its way: the middle of the request's round trip.
    #[serde(skip)]
    pub middle: Timestamp,
    /// The beginning of the body, where it is not well: which check failed.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub body: String,
}

/// One dial.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Dialled {
    /// When it began.
    #[serde(skip)]
    pub began: Stamp,
    /// When it ended.
    #[serde(skip)]
    pub ended: Stamp,
    /// Whom.
    pub target: String,
    /// The address that was connected to, or that was tried last.
    pub address: Option<SocketAddr>,
    /// The name's addresses, where it is a name.
    pub addresses: Vec<IpAddr>,
    /// Addresses that were tried before, each with why it is not that one.
    pub tried: Vec<String>,
    /// Time for the name; `None`: it is an address, or there was no answer.
    pub resolve_seconds: Option<f64>,
    /// Time for TCP.
    pub connect_seconds: Option<f64>,
    /// Time for the TLS handshake.
    pub tls_seconds: Option<f64>,
    /// Time from the request to the head of its answer.
    pub answer_seconds: Option<f64>,
    /// Time for all of it, however it ended.
    pub total_seconds: f64,
    /// The certificate, where one was shown, even if the handshake failed after it.
    pub certificate: Option<Certificate>,
    /// The answer.
    pub answer: Option<Answer>,
    /// Or why there is none.
    pub error: Option<DialError>,
}

/// Dials; it has ended after `limit`, save for the kernel's own hanging.
pub fn dial(host: &Host, target: &Target, limit: Duration) -> Dialled {
    let clock = host.clock().clone();
    let began = clock.stamp();
    let mut dialled = Dialled {
        began,
        ended: began,
        target: target.to_string(),
        address: None,
        addresses: Vec::new(),
        tried: Vec::new(),
        resolve_seconds: None,
        connect_seconds: None,
        tls_seconds: None,
        answer_seconds: None,
        total_seconds: 0.0,
        certificate: None,
        answer: None,
        error: None,
    };
    let until = began.boot + limit;
    match attempt(host, &clock, target, until, &mut dialled) {
        Ok(answer) => dialled.answer = Some(answer),
        Err(error) => dialled.error = Some(error),
    }
    dialled.ended = clock.stamp();
    dialled.total_seconds = dialled.ended.boot.saturating_sub(began.boot).as_secs_f64();
    dialled
}

fn attempt(
    host: &Host,
    clock: &Clock,
    target: &Target,
    until: Duration,
    dialled: &mut Dialled,
) -> Result<Answer, DialError> {
    let addresses = match target.host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => {
            let began = clock.since_boot();
            let addresses = resolve(host, clock, &target.host, until)?;
            dialled.resolve_seconds = Some(clock.since_boot().saturating_sub(began).as_secs_f64());
            dialled.addresses.clone_from(&addresses);
            addresses
        }
    };
    let stream = connect(clock, &addresses, target.port, until, dialled)?;
    let mut timed = Timed { stream, clock, until };
    if !target.tls {
        return ask(&mut timed, clock, target, dialled);
    }
    let seen = Arc::new(Seen::default());
    let handshaken = handshake(&mut timed, target, &seen);
    dialled.certificate = seen.certificate();
    let (mut connection, took) = handshaken?;
    dialled.tls_seconds = Some(took.as_secs_f64());
    ask(&mut rustls::Stream::new(&mut connection, &mut timed), clock, target, dialled)
}

/// `/etc/hosts`, then the nameservers of `/etc/resolv.conf` in order, as the C library does by default.
fn resolve(host: &Host, clock: &Clock, name: &str, until: Duration) -> Result<Vec<IpAddr>, DialError> {
    let failed = |error: String| DialError { step: Step::Resolve, why: Why::NameNotResolved, error };
    // A node without the file has no such names; one that cannot be read is told with the rest.
    let hosts = host.read("/etc/hosts").map(|text| dns::hosts(&text, name)).unwrap_or_default();
    if !hosts.is_empty() {
        return Ok(hosts);
    }
    let text = host.read("/etc/resolv.conf").map_err(|error| failed(error.to_string()))?;
    let conf = dns::resolv_conf(&text);
    if conf.nameservers.is_empty() {
        return Err(failed("/etc/resolv.conf names no nameserver".to_owned()));
    }
    // ndots is 1 on a node: a name with a dot is asked as it is first.
    let mut names = vec![name.to_owned()];
    if !name.trim_end_matches('.').contains('.') {
        names.splice(0..0, conf.search.iter().map(|domain| format!("{name}.{domain}")));
    }
    let mut said = Vec::new();
    for server in &conf.nameservers {
        for name in &names {
            for kind in [Kind::A, Kind::Aaaa] {
                let left = until.saturating_sub(clock.since_boot()).min(NAMESERVER_LIMIT);
                if left.is_zero() {
                    said.push("no time was left".to_owned());
                    return Err(failed(format!("{name} has no address: {}", said.join("; "))));
                }
                let question = Question { name: name.clone(), kind, recursion: true };
                match dns::ask(SocketAddr::new(*server, 53), &question, clock, left) {
                    Reply::Answered { addresses, .. } if !addresses.is_empty() => return Ok(addresses),
                    Reply::Answered { rcode, .. } => said.push(format!("{server} says rcode {rcode}")),
                    Reply::TimedOut => said.push(format!("{server} is silent")),
                    Reply::Refused => said.push(format!("nobody listens at {server}")),
                    Reply::Failed(error) => said.push(format!("{server}: {error}")),
                }
                // A nameserver that is silent is so for its next question too.
                if said.last().is_some_and(|said| !said.contains("rcode")) {
                    break;
                }
            }
            if said.last().is_some_and(|said| !said.contains("rcode")) {
                break;
            }
        }
    }
    said.dedup();
    Err(failed(format!("{name} has no address: {}", said.join("; "))))
}

fn connect(
    clock: &Clock,
    addresses: &[IpAddr],
    port: u16,
    until: Duration,
    dialled: &mut Dialled,
) -> Result<TcpStream, DialError> {
    let mut last = None;
    let count = addresses.len().min(MOST_TRIED);
    for (tried, address) in addresses.iter().take(MOST_TRIED).enumerate() {
        let address = SocketAddr::new(*address, port);
        let began = clock.since_boot();
        // Each gets its share of what is left.
        let share = u32::try_from(count - tried).unwrap_or(1).max(1);
        let left = until.saturating_sub(began) / share;
        if left.is_zero() {
            break;
        }
        if let Some(DialError { error, .. }) = &last {
            let shown = dialled.address.map(|address| address.to_string()).unwrap_or_default();
            dialled.tried.push(format!("{shown}: {error}"));
        }
        dialled.address = Some(address);
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                dialled.connect_seconds = Some(clock.since_boot().saturating_sub(began).as_secs_f64());
                return Ok(stream);
            }
            Err(error) => last = Some(io_error(Step::Connect, &error)),
        }
    }
    Err(last.unwrap_or(DialError {
        step: Step::Connect,
        why: Why::TimedOut,
        error: "no time was left to connect".to_owned(),
    }))
}

fn io_error(step: Step, error: &std::io::Error) -> DialError {
    use nix::libc::{EACCES, EHOSTUNREACH, EINVAL, ENETDOWN, ENETUNREACH, EPERM};
    let why = match (error.kind(), error.raw_os_error()) {
        (ErrorKind::ConnectionRefused, _) => Why::Refused,
        (ErrorKind::TimedOut | ErrorKind::WouldBlock, _) => Why::TimedOut,
        (ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe, _) => Why::Reset,
        // What the kernel says of a route of type blackhole (EINVAL), prohibit (EACCES), unreachable and throw; EPERM is
        // a rule that drops on the way out.
        (_, Some(EHOSTUNREACH | ENETUNREACH | ENETDOWN | EACCES | EPERM)) => Why::NoRoute,
        (_, Some(EINVAL)) if step == Step::Connect => Why::NoRoute,
        _ => Why::Failed,
    };
    let error = match (why, step) {
        (Why::TimedOut, Step::Connect) => "the connection was not made in time".to_owned(),
        (Why::TimedOut, Step::Tls) => "connected, and the TLS handshake was not answered in time".to_owned(),
        (Why::TimedOut, _) => "the request was not answered in time".to_owned(),
        (Why::NoRoute, _) if error.raw_os_error() == Some(EINVAL) => {
            format!("{error} (a blackhole route says so)")
        }
        _ => error.to_string(),
    };
    DialError { step, why, error }
}

/// A connection whose every read and write ends in time.
struct Timed<'a> {
    stream: TcpStream,
    clock: &'a Clock,
    until: Duration,
}

impl Timed<'_> {
    fn left(&self) -> std::io::Result<Option<Duration>> {
        let left = self.until.saturating_sub(self.clock.since_boot());
        if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(bytes)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

fn handshake(
    timed: &mut Timed<'_>,
    target: &Target,
    seen: &Arc<Seen>,
) -> Result<(ClientConnection, Duration), DialError> {
    let failed = |why, error: String| DialError { step: Step::Tls, why, error };
    let began = timed.clock.since_boot();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(Why::Failed, error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    let name = ServerName::try_from(target.host.clone())
        .map_err(|_| failed(Why::Failed, format!("{:?} is no name of a server", target.host)))?;
    let mut connection = ClientConnection::new(Arc::new(config), name)
        .map_err(|error| failed(Why::Failed, error.to_string()))?;
    while connection.is_handshaking() {
        match connection.complete_io(timed) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                return Err(failed(Why::Reset, "it hung up during the TLS handshake".to_owned()));
            }
            // rustls' own errors: an alert, or bytes that are no TLS.
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                return Err(failed(Why::Tls, format!("TLS: {error}")));
            }
            Err(error) => return Err(io_error(Step::Tls, &error)),
        }
    }
    Ok((connection, timed.clock.since_boot().saturating_sub(began)))
}

fn ask(
    stream: &mut (impl Read + Write),
    clock: &Clock,
    target: &Target,
    dialled: &mut Dialled,
) -> Result<Answer, DialError> {
    let not_http = |error: String| DialError { step: Step::Http, why: Why::NotHttp, error };
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::InvalidData => {
            DialError { step: Step::Http, why: Why::Tls, error: format!("TLS: {error}") }
        }
        _ => io_error(Step::Http, &error),
    };
    let began = clock.stamp();
    let request = format!(
        "GET /livez HTTP/1.1\r\nHost: {target}\r\nUser-Agent: nodewhy-agent\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).map_err(failed)?;
    let mut bytes = Vec::new();
    let mut chunk = [0; 2048];
    loop {
        let ended = match stream.read(&mut chunk) {
            Ok(0) => true,
            Ok(length) => {
                bytes.extend(chunk.iter().take(length));
                false
            }
            // A server that hangs up without close_notify; what it said before counts.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => true,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(failed(error)),
        };
        let done = clock.stamp();
        match head(&bytes) {
            Ok(Some(head)) => {
                let took = done.boot.saturating_sub(began.boot);
                dialled.answer_seconds = Some(took.as_secs_f64());
                let half = jiff::SignedDuration::try_from(took / 2).unwrap_or_default();
                let middle = began.wall.checked_add(half).unwrap_or(began.wall);
                return Ok(Answer { status: head.status, date: head.date, middle, body: head.body });
            }
            Ok(None) if ended && bytes.is_empty() => {
                return Err(not_http("it hung up without an answer".to_owned()));
            }
            Ok(None) if ended => return Err(not_http("its answer ended within the head".to_owned())),
            Ok(None) if bytes.len() > LONGEST_HEAD_BYTES => {
                return Err(not_http("its answer's head does not end".to_owned()));
            }
            Ok(None) => {}
            Err(error) => return Err(not_http(error)),
        }
    }
}

struct Head {
    status: u16,
    date: Option<Timestamp>,
    body: String,
}

/// `None`: it is not complete.
fn head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes).map_err(|error| format!("no HTTP: {error}"))? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let status = response.code.ok_or("an answer without a status")?;
    let date = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("date"))
        .and_then(|header| std::str::from_utf8(header.value).ok())
        .and_then(http_date);
    let body = bytes.get(length..).filter(|_| status >= 500).unwrap_or_default();
    let body = String::from_utf8_lossy(body).chars().take(512).collect();
    Ok(Some(Head { status, date, body }))
}

/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, 5.6.7): the one form that servers may send.
fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.trim()).ok()
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    crate::fuzz::done(head(bytes));
    crate::fuzz::done(http_date(&crate::fuzz::text(bytes)));
    crate::fuzz::done(certificate::certificate(bytes));
    crate::fuzz::done(Target::parse(&crate::fuzz::text(bytes)));
}

#[cfg(test)]
mod tests;
