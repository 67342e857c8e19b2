//! A real etcd on the loopback: found by its process, read by its own metrics, and missed when it ends.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test starts what it tests against")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nodewhy_agent::collect::control_plane::COLLECTOR;
use nodewhy_agent::collector::Collect;
use nodewhy_agent::host::{Host, Places};
use nodewhy_agent::thresholds::Thresholds;
use nodewhy_clock::Clock;

/// Ended with the test, however that ends.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn post(port: u16, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_real_etcd_is_found_read_and_missed() {
    let folder = tempfile::tempdir().unwrap();
    let (client, peer, metrics) = (free_port(), free_port(), free_port());
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let data = folder.path().join("data");
    let started = Command::new("etcd")
        .args(["--data-dir", data.to_str().unwrap()])
        .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)])
        .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
        .args(["--initial-cluster", &format!("default={}", url(peer))])
        .args(["--listen-metrics-urls", &url(metrics)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let etcd = match started {
        Ok(etcd) => Ended(etcd),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            panic!("etcd is not installed: `make test` installs Debian's etcd-server")
        }
        Err(error) => panic!("{error}"),
    };
    let host = Host::new("/", Clock::system(), Places::default());
    let mut running = COLLECTOR.start();
    let mut look = || running.step(&host, &Thresholds::default());
    let until = host.clock().since_boot() + Duration::from_secs(60);
    let json = loop {
        let step = look();
        let json = step.reading.map(|reading| reading.json().unwrap()).unwrap_or_default();
        if json.pointer("/etcd/has_leader") == Some(&serde_json::Value::Bool(true)) {
            break json;
        }
        assert!(host.clock().since_boot() < until, "no leader in {json}; {:?}", step.outcome);
        std::thread::sleep(Duration::from_millis(200));
    };
    let etcd_json = &json["etcd"];
    assert_eq!(etcd_json["pid"], etcd.0.id());
    assert_eq!(etcd_json["metrics"], format!("{}/metrics", url(metrics)));
    assert_eq!(etcd_json["data_dir"], data.to_str().unwrap());
    assert_eq!(etcd_json["quota_bytes"], 2_147_483_648.0, "etcd's default of 2 GiB");
    assert!(etcd_json["db_bytes"].as_f64().unwrap() > 0.0);
    // Writes are seen as writes of its log.
    for key in 0..20 {
        let body = format!("{{\"key\":\"{}\",\"value\":\"dg==\"}}", ["YQ==", "Yg=="][key % 2]);
        assert!(post(client, "/v3/kv/put", &body).contains("revision"));
    }
    let step = look();
    let json = step.reading.unwrap().json().unwrap();
    let fsync = &json["etcd"]["wal_fsync"];
    assert!(fsync["count"].as_f64().unwrap() >= 20.0, "{json}");
    assert!(fsync["p99_seconds"].as_f64().unwrap() > 0.0, "{json}");
    assert!(step.noticed.unwrap().states.iter().all(|state| state.finding != "etcd_down"));
    drop(etcd);
    let step = look();
    assert_eq!(step.reading.unwrap().json().unwrap()["etcd"]["is_gone"], true);
    let states = step.noticed.unwrap().states;
    assert!(states.iter().any(|state| state.finding == "etcd_down"), "{states:?}");
}
