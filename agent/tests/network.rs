//! The network and the API server, on the real kernel, in namespaces that the tests make: routes and rules counted as
//! `ip` counts them, a real TLS server behind a veth pair, and rules that drop and reject.
//!
//! Needs root, `unshare`, `ip`, `iptables-legacy`.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test starts programs, and stops at what it did not expect"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use nodewhy_agent::collect::{api_server, network};
use nodewhy_agent::collector::{Collect, Noticed, Running};
use nodewhy_agent::host::dial::{self, Step, Target, Why};
use nodewhy_agent::host::{Host, Places, ethtool};
use nodewhy_agent::thresholds::{Overrides, Thresholds};
use nodewhy_clock::{Clock, Mover};
use nodewhy_proto::{EventBody, Outcome, Severity};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::Value;

const INSIDE: &str = "NODEWHY_NETWORK_TEST";
const SERVER: &str = "NODEWHY_NETWORK_SERVER";

/// Runs this test again in namespaces of its own: `true` inside. Its process 2 is called `kthreadd`, as on a node.
fn alone(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let folder = tempfile::tempdir().unwrap();
    let sleeper = folder.path().join("kthreadd");
    std::fs::copy("/usr/bin/sleep", &sleeper).unwrap();
    let script = "\"$0\" 1000 & mount -t tmpfs none /run && mount -t sysfs none /sys && mkdir /run/netns && exec \"$@\"";
    let status = Command::new("unshare")
        .args(["--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script])
        .arg(&sleeper)
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{test}, in its own namespaces, ended with {status}");
    false
}

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{script}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn count(script: &str) -> u64 {
    sh(&format!("{script} | wc -l")).trim().parse().unwrap()
}

/// `api` is 10.99.0.1 in a namespace of that name; here is 10.99.0.254.
fn peer() {
    sh("ip link set lo up; ip netns add api; ip link add api index 77 type veth peer name eth0 netns api; \
        ip addr add 10.99.0.254/24 dev api; ip link set api up; ip -n api link set lo up; \
        ip -n api addr add 10.99.0.1/24 dev eth0; ip -n api link set eth0 up");
}

fn host(api_server: Option<&str>) -> (Host, Mover) {
    let (clock, mover) = Clock::skippable();
    let api_server = api_server.map(|text| Target::parse(text).unwrap());
    (Host::new("/", clock, Places { api_server, ..Places::default() }), mover)
}

struct Reading {
    json: Value,
    noticed: Noticed,
}

fn read(running: &mut dyn Running, host: &Host, thresholds: &Thresholds) -> Reading {
    let step = running.step(host, thresholds);
    assert_eq!(step.outcome, Outcome::Read);
    Reading { json: step.reading.unwrap().json().unwrap(), noticed: step.noticed.unwrap() }
}

fn names(reading: &Reading) -> Vec<&'static str> {
    reading.noticed.states.iter().map(|state| state.finding).collect()
}

/// Reads until the ways out are anew, with 11 s skipped.
fn later(running: &mut dyn Running, host: &Host, mover: &Mover) -> Reading {
    mover.skip(Duration::from_secs(11));
    let thresholds = Thresholds::default();
    let mut happenings = read(running, host, &thresholds).noticed.happenings;
    std::thread::sleep(Duration::from_millis(300));
    let mut reading = read(running, host, &thresholds);
    happenings.append(&mut reading.noticed.happenings);
    reading.noticed.happenings = happenings;
    reading
}

#[test]
fn routes_and_rules_are_counted_as_ip_counts_them_and_a_flush_is_seen() {
    if !alone("routes_and_rules_are_counted_as_ip_counts_them_and_a_flush_is_seen") {
        return;
    }
    peer();
    sh("ip route add default via 10.99.0.1; \
        for i in $(seq 1 20); do ip rule add from 10.1.0.$i lookup $((100 + i % 3)) prio $((1000 + i)); done; \
        for i in $(seq 1 30); do ip route add 10.2.$i.0/24 via 10.99.0.1 proto 80; done; \
        for i in $(seq 1 5); do ip route add 10.3.$i.0/24 via 10.99.0.1 proto bird table 101; done; \
        ip route add default via 10.99.0.1 table 101; ip route add blackhole 10.4.0.0/16");
    UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", "10.99.0.1:9").unwrap();
    let (host, mover) = host(None);
    let mut running = network::COLLECTOR.start();
    read(running.as_mut(), &host, &Thresholds::default());
    let reading = later(running.as_mut(), &host, &mover);
    let paths = &reading.json["paths"];
    assert_eq!(reading.json["namespace"], "hosts");
    assert_eq!(paths["rules"]["ipv4"], count("ip -4 rule"), "{paths:#}");
    assert_eq!(paths["rules"]["ipv6"], count("ip -6 rule"));
    let routes: u64 =
        paths["routes"]["ipv4"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(routes, count("ip -4 route show table all | grep -v 'table local'"));
    assert_eq!(
        (&paths["routes"]["ipv4"]["calico"], &paths["routes"]["ipv4"]["bird"]),
        (&30.into(), &5.into())
    );
    assert_eq!(paths["tables"]["101"], 6);
    let default = &paths["defaults"][0];
    assert_eq!((&default["gateway"], &default["interface"]), (&"10.99.0.1".into(), &"api".into()));
    assert_ne!(default["neighbour"], Value::Null);
    assert_eq!(names(&reading), Vec::<&str>::new(), "{:#?}", reading.noticed.states);
    let veth = &reading.json["interfaces"]["veth"];
    assert_eq!(veth["count"], 1, "{:#}", reading.json["interfaces"]);

    // What a network manager does that keeps no foreign rules.
    sh("ip rule flush; ip rule add lookup main prio 32766; ip route flush proto 80");
    let reading = later(running.as_mut(), &host, &mover);
    let changed: Vec<String> = reading
        .noticed
        .happenings
        .iter()
        .filter_map(|happening| match &happening.body {
            EventBody::Changed(change) => Some(format!("{} {:?} {:?}", change.name, change.from, change.to)),
            _ => None,
        })
        .collect();
    assert!(changed.iter().any(|it| it.starts_with("ipv4 rules Some(\"23\") Some(\"2\")")), "{changed:?}");
    assert!(changed.contains(&"ipv4 routes of calico Some(\"30\") Some(\"0\")".to_owned()), "{changed:?}");

    // The gateway goes: nobody answers for its address.
    sh("ip -n api addr flush dev eth0; ip neigh flush dev api; ip neigh del 10.99.0.1 dev api || true");
    UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", "10.99.0.1:9").unwrap();
    let reading = later(running.as_mut(), &host, &mover);
    assert_eq!(names(&reading), ["gateway_unreachable"], "{:#}", reading.json["paths"]);

    // The main table's default is gone, another table's is still there: not lost. Then that goes too.
    sh("ip route del default");
    assert!(!names(&later(running.as_mut(), &host, &mover)).contains(&"no_default_route"));
    sh("ip route flush table 101");
    assert!(names(&later(running.as_mut(), &host, &mover)).contains(&"no_default_route"));
}

#[test]
fn a_veths_own_statistics_are_read_by_ioctl() {
    if !alone("a_veths_own_statistics_are_read_by_ioctl") {
        return;
    }
    peer();
    let statistics = ethtool::statistics("api").unwrap();
    let peer = statistics.iter().find(|(name, _)| name == "peer_ifindex").expect("a veth tells its peer");
    let index: u64 =
        sh("ip netns exec api cat /sys/class/net/eth0/ifindex || ip -n api -o link show eth0 | cut -d: -f1")
            .trim()
            .parse()
            .unwrap();
    assert_eq!(peer.1, index);
}

#[test]
fn nameservers_that_answer_and_that_are_silent() {
    if !alone("nameservers_that_answer_and_that_are_silent") {
        return;
    }
    peer();
    let root = tempfile::tempdir().unwrap();
    // A root with this /proc and /sys, and a resolv.conf of the test's.
    for folder in ["proc", "sys"] {
        std::os::unix::fs::symlink(format!("/{folder}"), root.path().join(folder)).unwrap();
    }
    std::fs::create_dir(root.path().join("etc")).unwrap();
    std::fs::write(root.path().join("etc/resolv.conf"), "nameserver 127.0.0.1\nnameserver 10.99.0.1\n")
        .unwrap();
    let server = UdpSocket::bind("127.0.0.1:53").unwrap();
    let answers = std::thread::spawn(move || {
        let mut bytes = [0; 512];
        let (length, from) = server.recv_from(&mut bytes).unwrap();
        // NXDOMAIN is an answer too.
        bytes[2] |= 0x80;
        bytes[3] = 3;
        server.send_to(&bytes[..length], from).unwrap();
    });
    // Nobody listens at 10.99.0.1:53, and its host may not say so.
    sh("ip netns exec api iptables-legacy -A INPUT -p udp --dport 53 -j DROP");
    let (clock, mover) = Clock::skippable();
    let host = Host::new(root.path(), clock, Places::default());
    let mut running = network::COLLECTOR.start();
    let thresholds = Thresholds::default();
    // A silent one is asked twice, two seconds each; the thread that asks is waited for.
    let told = |running: &mut dyn Running, outcome: &str, which: usize| {
        for _ in 0..200 {
            let reading = read(running, &host, &thresholds);
            if reading.json["resolver"]["nameservers"][which]["outcome"] == outcome {
                return reading;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("no nameserver {which} that is {outcome}");
    };
    let reading = told(running.as_mut(), "timed_out", 1);
    let servers = &reading.json["resolver"]["nameservers"];
    assert_eq!(
        (&servers[0]["outcome"], &servers[0]["rcode"]),
        (&"answered".into(), &3.into()),
        "{servers:#}"
    );
    assert_eq!(servers[1]["outcome"], "timed_out");
    assert_eq!(names(&reading), Vec::<&str>::new());
    answers.join().unwrap();
    // The first one's program has ended: its port is closed.
    mover.skip(Duration::from_secs(31));
    let reading = told(running.as_mut(), "refused", 0);
    assert_eq!(names(&reading), ["name_resolution_failing"]);
}

/// What the server at each port does.
const WELL: u16 = 6443;
const EXPIRED: u16 = 6501;
const SICK: u16 = 6502;
const SKEWED: u16 = 6503;
const HANGS: u16 = 6504;
const RESETS: u16 = 6505;
const CLOSED: u16 = 6506;
const DROPPED: u16 = 6507;
const REJECTED: u16 = 6508;
const SLOW: u16 = 6509;

#[test]
fn serve_for_another_test() {
    if std::env::var_os(SERVER).is_none() {
        return;
    }
    let good = tls(2099);
    let expired = tls(2021);
    for port in [WELL, EXPIRED, SICK, SKEWED, HANGS, RESETS, DROPPED, REJECTED, SLOW] {
        let listener = TcpListener::bind(("10.99.0.1", port)).unwrap();
        let config = if port == EXPIRED { expired.clone() } else { good.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let config = config.clone();
                std::thread::spawn(move || serve(port, config, stream.unwrap()));
            }
        });
    }
    println!("ready");
    std::thread::sleep(Duration::from_secs(600));
}

fn tls(until_year: i32) -> Arc<ServerConfig> {
    let key = KeyPair::generate().unwrap();
    let mut parameters = CertificateParams::new(vec!["10.99.0.1".to_owned()]).unwrap();
    parameters.not_before = date_time_ymd(2020, 1, 1);
    parameters.not_after = date_time_ymd(until_year, 1, 1);
    let certificate = parameters.self_signed(&key).unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    Arc::new(config)
}

fn serve(port: u16, config: Arc<ServerConfig>, mut stream: TcpStream) {
    if port == HANGS {
        std::thread::sleep(Duration::from_secs(600));
    }
    if port == RESETS {
        stream.read_exact(&mut [0; 8]).unwrap();
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger).unwrap();
        return;
    }
    let mut connection = rustls::ServerConnection::new(config).unwrap();
    let mut tls = rustls::Stream::new(&mut connection, &mut stream);
    let mut request = [0; 1024];
    let Ok(_) = tls.read(&mut request) else { return };
    let ahead = if port == SKEWED { SignedDuration::from_secs(120) } else { SignedDuration::ZERO };
    let date = Clock::system().now().checked_add(ahead).unwrap();
    let date = date.strftime("%a, %d %b %Y %H:%M:%S GMT");
    let (status, body) = if port == SICK {
        ("500 Internal Server Error", "[+]ping ok\n[-]etcd failed\n")
    } else {
        ("200 OK", "ok")
    };
    if port == SLOW {
        std::thread::sleep(Duration::from_millis(1500));
    }
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Length: {length}\r\n\r\n{body}");
    tls.write_all(answer.as_bytes()).ok();
    connection.send_close_notify();
    connection.complete_io(&mut stream).ok();
    stream.shutdown(Shutdown::Both).ok();
}

/// The servers, in the namespace `api`. They end with the test's namespaces.
fn servers() -> Child {
    let mut child = Command::new("ip")
        .args(["netns", "exec", "api"])
        .arg(std::env::current_exe().unwrap())
        .args(["serve_for_another_test", "--exact", "--nocapture"])
        .env(SERVER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let out = child.stdout.as_mut().unwrap();
    while !said.contains("ready") {
        let mut byte = [0];
        out.read_exact(&mut byte).unwrap();
        said.push(char::from(byte[0]));
    }
    child
}

/// Skips to the next dial, and waits for its end: a clock that is moved during a dial would make it a slow one.
fn redial(running: &mut dyn Running, host: &Host, mover: &Mover, thresholds: &Thresholds) -> Reading {
    mover.skip(Duration::from_secs(10));
    let mut reading = read(running, host, thresholds);
    let began = Instant::now();
    while !reading.json["running_seconds"].is_null() && began.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(50));
        reading = read(running, host, thresholds);
    }
    reading
}

/// One reading of a fresh collector, or two with a dial each.
fn look(target: &str, dials: u32, thresholds: &Thresholds) -> Reading {
    let (host, mover) = host(Some(target));
    let mut running = api_server::COLLECTOR.start();
    let mut reading = read(running.as_mut(), &host, thresholds);
    for _ in 1..dials {
        reading = redial(running.as_mut(), &host, &mover, thresholds);
    }
    reading
}

#[test]
fn an_api_server_in_every_state_that_it_can_be_in() {
    if !alone("an_api_server_in_every_state_that_it_can_be_in") {
        return;
    }
    peer();
    let mut servers = servers();
    sh(&format!(
        "ip netns exec api iptables-legacy -A INPUT -p tcp --dport {DROPPED} -j DROP; \
         ip netns exec api iptables-legacy -A INPUT -p tcp --dport {REJECTED} -j REJECT --reject-with icmp-host-unreachable; \
         ip route add blackhole 10.98.0.1; ip route add unreachable 10.98.0.2; ip route add prohibit 10.98.0.3"
    ));
    let usual = Thresholds::default();
    let at = |port: u16| format!("10.99.0.1:{port}");
    let well = look(&at(WELL), 1, &usual);
    assert_eq!(well.json["dial"]["answer"]["status"], 200, "{:#}", well.json);
    assert_eq!(names(&well), Vec::<&str>::new());
    assert!(well.json["clock_offset_seconds"].as_f64().unwrap().abs() < 2.0);

    let expired = look(&at(EXPIRED), 1, &usual);
    assert_eq!(names(&expired), ["api_certificate_expired"]);
    let since: Timestamp = "2021-01-01T00:00:00Z".parse().unwrap();
    assert_eq!(expired.noticed.states[0].since, Some(since));

    let sick = look(&at(SICK), 1, &usual);
    assert_eq!(names(&sick), ["api_server_unhealthy"]);
    assert_eq!(sick.noticed.states[0].evidence[1].text, "[-]etcd failed");

    let skewed = look(&at(SKEWED), 1, &usual);
    assert_eq!(names(&skewed), ["clock_skewed"]);
    let offset = skewed.json["clock_offset_seconds"].as_f64().unwrap();
    assert!((-122.0..=-118.0).contains(&offset), "{offset}");

    let impatient = Overrides::from([("api_server_slow_seconds", 1.0)]).over(Thresholds::default());
    assert_eq!(names(&look(&at(SLOW), 1, &impatient)), ["api_server_slow"]);

    // One failure may be a restart; two are a finding, dated by the first.
    let once = look(&at(CLOSED), 1, &usual);
    assert_eq!(names(&once), Vec::<&str>::new());
    let twice = look(&at(CLOSED), 2, &usual);
    assert_eq!(names(&twice), ["api_server_unreachable"], "{:#}", twice.json);
    let state = &twice.noticed.states[0];
    assert_eq!(state.severity, Severity::Warning);
    assert!(state.evidence[0].text.starts_with("refused: "), "{state:?}");
    let now = Clock::system().now();
    assert!(state.since.unwrap() < now.checked_add(SignedDuration::from_secs(11)).unwrap());

    let (host, _) = host(None);
    let failure = |address: &str| {
        let target = Target::parse(address).unwrap();
        let error = dial::dial(&host, &target, Duration::from_millis(1500)).error.expect(address);
        (error.step, error.why)
    };
    assert_eq!(failure(&at(DROPPED)), (Step::Connect, Why::TimedOut));
    assert_eq!(failure(&at(REJECTED)), (Step::Connect, Why::NoRoute));
    assert_eq!(failure("10.98.0.1:6443"), (Step::Connect, Why::NoRoute), "blackhole");
    assert_eq!(failure("10.98.0.2:6443"), (Step::Connect, Why::NoRoute), "unreachable");
    assert_eq!(failure("10.98.0.3:6443"), (Step::Connect, Why::NoRoute), "prohibit");
    assert_eq!(failure("192.0.2.1:6443"), (Step::Connect, Why::NoRoute), "no route at all");
    assert_eq!(failure(&at(HANGS)), (Step::Tls, Why::TimedOut));
    assert_eq!(failure(&at(RESETS)), (Step::Tls, Why::Reset));
    servers.kill().unwrap();
    servers.wait().unwrap();
}

#[test]
fn a_connection_that_is_dead_beside_a_dial_that_works() {
    if !alone("a_connection_that_is_dead_beside_a_dial_that_works") {
        return;
    }
    peer();
    let mut servers = servers();
    let (host, mover) = host(Some(&format!("10.99.0.1:{WELL}")));
    // This process is the kubelet, and this its connection. Another one, of another process, is nobody's affair.
    host.learn_kubelet_process(host.process(std::process::id()).unwrap());
    let address: SocketAddr = format!("10.99.0.1:{WELL}").parse().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let quick = Overrides::from([("stale_api_connection_seconds", 2.0)]).over(Thresholds::default());
    let mut running = api_server::COLLECTOR.start();
    let reading = read(running.as_mut(), &host, &quick);
    let connections = &reading.json["connections"];
    assert_eq!(connections["source"], "sock_diag", "{connections:#}");
    assert_eq!(connections["owner_known"], true);
    assert_eq!(connections["by_state"]["ESTABLISHED"], 1, "{connections:#}");
    assert_eq!(names(&reading), Vec::<&str>::new());

    let port = stream.local_addr().unwrap().port();
    sh(&format!("ip netns exec api iptables-legacy -A INPUT -p tcp --sport {port} -j DROP"));
    stream.write_all(b"renew").unwrap();
    let began = Instant::now();
    let mut reading = read(running.as_mut(), &host, &quick);
    while names(&reading).is_empty() && began.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(500));
        reading = redial(running.as_mut(), &host, &mover, &quick);
    }
    assert_eq!(names(&reading), ["stale_api_connection"], "{:#}", reading.json);
    let evidence = &reading.noticed.states[0].evidence;
    assert!(evidence[0].text.contains("5 bytes unacknowledged"), "{evidence:?}");
    assert!(evidence[1].text.starts_with("a new connection was answered"), "{evidence:?}");
    servers.kill().unwrap();
    servers.wait().unwrap();
}
