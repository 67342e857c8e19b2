use std::path::Path;

use nodewhy_guest::channel::Clocks;
use nodewhy_proto::SubjectKind;

use super::*;

pub(crate) fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(1_795_000_000_000 + millis).unwrap()
}

pub(crate) fn truth(fault: &str) -> Truth {
    let since =
        Clocks { unix_nanos: 1_795_000_010_000_000_000, boot_nanos: 110_000_000_000, monotonic_nanos: 1 };
    Truth {
        version: VERSION,
        fault: fault.to_owned(),
        about: "containerd is stopped by SIGSTOP".to_owned(),
        cause: "containerd_hung".to_owned(),
        subject: Subject::new(SubjectKind::Runtime, "/run/containerd/containerd.sock"),
        injected: Injected::since(since).proven("/proc/7/status", "State:\tT (stopped)"),
        undone_at: at(30_000),
        undone: None,
        began_at: at(0),
        ended_at: at(40_000),
        software: Software {
            kernel: "6.1.0-0-cloud-amd64".to_owned(),
            suite: "bookworm".to_owned(),
            containerd: "1.6.20".to_owned(),
            agent: "0.1.0".to_owned(),
        },
        stand_ins: vec!["kubelet-standin".to_owned()],
    }
}

fn answer(second: i64, said: Said) -> Answer {
    Answer { asked: at(second * 1000), received: at(second * 1000 + 7), said }
}

fn evidence() -> Evidence {
    let body = |body: &str| Said::Body { status: 200, body: body.to_owned() };
    let states = (0..30).map(|second| match second {
        9 => answer(second, Said::Hole { error: "no answer in 2 s".to_owned() }),
        _ => answer(second, body(&format!("{{\"now\":{second},\"figure\":0.1000000000000000055}}"))),
    });
    let served = Served {
        node: vec![answer(0, body("{}"))],
        state: states.collect(),
        metrics: vec![answer(0, body("# HELP a b\na{x=\"\\\\\"} 1\n"))],
        findings: vec![],
        readyz: vec![answer(0, Said::Body { status: 503, body: "{}".to_owned() })],
        events: vec![
            Heard { received: at(1), what: Stream::Opened { after: None } },
            Heard {
                received: at(2),
                what: Stream::Event { id: Some("a-1".to_owned()), data: "{}".to_owned() },
            },
            Heard { received: at(3), what: Stream::Lost { why: "the stream ended".to_owned() } },
        ],
    };
    let kmsg = Some(vec!["6,1,2,-;text\n SUBSYSTEM=x".to_owned()]);
    Evidence {
        truth: truth("containerd-hung"),
        agents: [(Way::Host, served.clone()), (Way::Pod, served)].into(),
        kmsg,
    }
}

fn refused(path: &Path, names: &[&str]) {
    let error = format!("{:#}", Evidence::read(path).unwrap_err());
    assert!(names.iter().all(|name| error.contains(name)), "{error}");
}

#[test]
fn what_was_written_is_read_to_the_last_byte_of_each_body() {
    let root = tempfile::tempdir().unwrap();
    let evidence = evidence();
    // Twice: the second takes the first one's place.
    for _ in 0..2 {
        let path = evidence.write(root.path()).unwrap();
        assert_eq!(Evidence::read(&path).unwrap(), evidence);
    }
    assert_eq!(all(root.path()).unwrap().into_keys().collect::<Vec<_>>(), ["containerd-hung"]);
    std::fs::rename(root.path().join("containerd-hung"), root.path().join("other")).unwrap();
    assert!(format!("{:#}", all(root.path()).unwrap_err()).contains("containerd-hung"));
}

#[test]
fn a_file_that_is_cut_or_damaged_anywhere_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let path = evidence().write(root.path()).unwrap();
    for name in ["host/state.zst", "host/events.zst", "kmsg.zst"] {
        let file = path.join(name);
        let whole = std::fs::read(&file).unwrap();
        for end in 0..whole.len() {
            std::fs::write(&file, &whole[..end]).unwrap();
            refused(&path, &[name]);
        }
        for index in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[index] ^= 0x10;
            std::fs::write(&file, &flipped).unwrap();
            // A few bits of a frame's header mean nothing; whatever they are, no record may be lost or changed.
            match Evidence::read(&path) {
                Ok(read) => assert_eq!(read, evidence(), "{name}, byte {index}"),
                Err(error) => assert!(format!("{error:#}").contains(name), "{error:#}"),
            }
        }
        std::fs::remove_file(&file).unwrap();
        if name != "kmsg.zst" {
            refused(&path, &[name]);
        }
        std::fs::write(&file, &whole).unwrap();
    }
    assert_eq!(Evidence::read(&path).unwrap(), evidence());
}

#[test]
fn what_the_reader_does_not_know_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = evidence().write(root.path()).unwrap();
    for stranger in ["host/history.zst", "notes.txt"] {
        std::fs::write(path.join(stranger), "").unwrap();
        refused(&path, &[stranger, "version 1"]);
        std::fs::remove_file(path.join(stranger)).unwrap();
    }
    // Whole, with a good checksum, and yet not ours: fewer records than told, another version, another format.
    for (text, says) in [
        (r#"{"format":"nodewhy-evidence","version":1,"records":1}"#, "0 records"),
        (r#"{"format":"nodewhy-evidence","version":2,"records":0}"#, "version 2"),
        (r#"{"format":"other","version":1,"records":0}"#, "other"),
        ("", "empty"),
    ] {
        std::fs::write(path.join("host/node.zst"), zstd::encode_all(text.as_bytes(), 3).unwrap()).unwrap();
        refused(&path, &["host/node.zst", says]);
    }
    let mut evidence = evidence();
    evidence.truth.version = 2;
    refused(&evidence.write(root.path()).unwrap(), &["truth.json", "version 2"]);
}

/// About 65 faults with two agents each are to stay far below what a repository can bear.
#[test]
fn the_collection_is_small() {
    fn size(path: &Path) -> u64 {
        std::fs::read_dir(path)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let meta = entry.metadata().unwrap();
                if meta.is_dir() { size(&entry.path()) } else { meta.len() }
            })
            .sum()
    }
    let bytes = size(&folder());
    assert!(bytes < 20_000_000, "tests/ground/evidence has {bytes} bytes: record fewer or shorter runs");
}
