//! The same logs by syslog(2): what the recordings of /dev/kmsg would have been, and this machine's own by both ways.

use std::cell::Cell;

use super::super::record;
use super::super::snapshot::{Follower, lines};
use super::super::way::poll;
use super::*;
use crate::host::kmsg::Next;

/// A record in the form of `record_print_text` (kernel/printk/printk.c): each line of it with the prefix.
fn as_syslog(raw: &str) -> String {
    let record = record::parse(raw.as_bytes()).unwrap();
    let priority = record.facility << 3 | u64::from(record.level);
    let (seconds, micros) = (record.usec / 1_000_000, record.usec % 1_000_000);
    let caller = record.caller.map_or(String::new(), |caller| format!("[{caller:>6}]"));
    let prefix = format!("<{priority}>[{seconds:5}.{micros:06}]{caller} ");
    record.text.split('\n').map(|line| format!("{prefix}{line}\n")).collect()
}

fn read_as_syslog(text: &str) -> Log {
    let mut log = Log::new(PAGE, KernelClock::new(true));
    for line in lines(text.as_bytes()) {
        log.line(&line, at(100_000.0), None);
    }
    log.quiet();
    log.passed(at(100_000.0));
    log
}

/// What was told, without what only one way has: numbers, and the further lines of a record.
fn told(log: &Log) -> Vec<(Stamp, EventBody)> {
    let body = |body: &EventBody| match body.clone() {
        EventBody::OomKill(kill) => EventBody::OomKill(OomKill { kmsg_seq: None, ..kill }),
        EventBody::KernelMessage(message) => EventBody::KernelMessage(KernelMessage {
            kmsg_seq: None,
            line: message.line.split('\n').next().unwrap().to_owned(),
            ..message
        }),
        other => other,
    };
    log.happened.iter().map(|happened| (happened.at, body(&happened.body))).collect()
}

#[test]
fn each_recording_tells_the_same_by_either_way() {
    for recording in [
        fixture!("linux-6.1.192/boot.txt"),
        fixture!("linux-6.1.192/conntrack-full.txt"),
        fixture!("linux-6.1.192/episode-disk-pressure.txt"),
        fixture!("linux-6.1.192/episode-pod-oom.txt"),
        fixture!("linux-6.1.192/episode-runtime-down.txt"),
        fixture!("linux-6.1.192/episode-system-oom.txt"),
        fixture!("linux-6.1.192/ext4-remount-ro.txt"),
        fixture!("linux-6.1.192/hung-task.txt"),
        fixture!("linux-6.1.192/io-error.txt"),
        fixture!("linux-6.1.192/io-medium-error.txt"),
        fixture!("linux-6.1.192/oom-memcg-v2.txt"),
        fixture!("linux-6.18.44/oom-memcg-v1-container.txt"),
        fixture!("linux-6.18.44/oom-memcg-v1-pod-limit.txt"),
        fixture!("linux-7.2.13/boot.txt"),
        fixture!("linux-7.2.13/episode-pod-oom.txt"),
        fixture!("linux-7.2.13/episode-system-oom.txt"),
        fixture!("linux-7.2.13/io-error.txt"),
        fixture!("linux-7.2.13/hung-task.txt"),
    ] {
        let kmsg = read_whole(recording);
        let text: String = records(recording).iter().map(|record| as_syslog(record)).collect();
        let syslog = read_as_syslog(&text);
        assert_eq!(told(&syslog), told(&kmsg));
        assert_eq!((&syslog.kills, &syslog.messages), (&kmsg.kills, &kmsg.messages));
        assert_eq!((syslog.malformed_total, syslog.records_total), (0, text.lines().count() as u64));
        assert!(syslog.happened.iter().all(|happened| happened.id.seq().is_none()));
        let keys = |log: &Log| log.happened.iter().map(|happened| happened.id.key()).collect::<Vec<_>>();
        let mut unique = keys(&syslog);
        unique.sort_unstable();
        unique.dedup();
        assert_eq!(unique.len(), syslog.happened.len());
        // Read again by a restarted agent: the same ids.
        assert_eq!(keys(&read_as_syslog(&text)), keys(&syslog));
    }
}

#[test]
fn callers_keep_reports_apart_by_this_way_too() {
    let one = records(fixture!("linux-6.1.192/episode-system-oom.txt"));
    let called: String =
        one.iter().map(|record| as_syslog(&record.replacen(",-;", ",-,caller=T1990;", 1))).collect();
    assert!(called.starts_with("<4>[ 3475.733824][ T1990] kubelet invoked oom-killer: "));
    let EventBody::OomKill(kill) = told(&read_as_syslog(&called)).remove(0).1 else { panic!() };
    assert_eq!((kill.pid, kill.biggest.len(), kill.trigger.as_deref()), (3886, 5, Some("kubelet")));
}

/// Polls a log that has grown to these bytes.
fn polled(
    text: &[u8],
    source: &mut (Follower, Option<Duration>, Log),
    seconds: f64,
) -> Result<bool, ReadError> {
    let (follower, newest_look, log) = source;
    poll(follower, newest_look, |_| Ok(text.to_vec()), log, || at(seconds))
}

#[test]
fn a_kill_that_is_cut_by_the_tick_is_told_once_with_the_kernels_time() {
    let all = records(fixture!("linux-6.1.192/episode-pod-oom.txt"));
    let text: Vec<String> = all.iter().map(|record| as_syslog(record)).collect();
    let end = all.iter().position(|record| record.contains(",618,")).unwrap() + 1;
    for cut in [10, end - 40, end - 4, end - 3, end - 2, end - 1] {
        let mut source = (Follower::new(128 * 1024), None, Log::new(PAGE, KernelClock::new(true)));
        // The first sibling is at 3296.29 s; the ticks before and after it.
        polled(text[..cut].concat().as_bytes(), &mut source, 3295.4).unwrap();
        polled(text[..end].concat().as_bytes(), &mut source, 3296.4).unwrap();
        polled(text[..end].concat().as_bytes(), &mut source, 3297.4).unwrap();
        let log = &source.2;
        let kills: Vec<_> =
            log.newest_kills.iter().map(|kill| (kill.kill.pid, kill.kill.group.len())).collect();
        assert_eq!((kills, log.losses_of_unknown_size_total), (vec![(3459, 1)], 0), "cut at {cut}");
        assert_eq!(log.records_total, text[..end].concat().lines().count() as u64);
        assert!((log.newest_kills[0].boot_seconds - 3296.28).abs() < 1.0);
    }
}

#[test]
fn a_loss_is_told_and_is_never_a_known_zero() {
    let mut source = (Follower::new(128 * 1024), None, Log::new(PAGE, KernelClock::new(true)));
    polled(b"<6>[    1.000000] a\n<6>[    2.000000] b\n", &mut source, 2.5).unwrap();
    polled(b"<6>[    3.000000] c\n", &mut source, 3.5).unwrap();
    let log = &mut source.2;
    assert_eq!((log.records_total, log.losses_of_unknown_size_total), (3, 1));
    let told = Reading { way: "syslog(2)", lost_total: None, overruns_total: None, ..reading(log) };
    assert!(summary(&told).contains("lines lost 1 times, how many is not known"), "{}", summary(&told));
    let mut sink = Sink::default();
    metrics(&told, &mut sink);
    let text = sink.encode();
    assert!(text.contains("\nnodewhy_kmsg_losses_of_unknown_size_total 1\n"), "{text}");
    assert!(!text.contains("nodewhy_kmsg_lost_total"), "{text}");
    let json = serde_json::to_value(&told).unwrap();
    assert!(
        json["lost_total"].is_null()
            && json["newest_seq"].is_null()
            && json["recent"][0].get("seq").is_none()
    );
}

#[test]
fn a_log_without_times_is_a_failure_that_says_what_to_do() {
    let mut source = (Follower::new(128 * 1024), None, Log::new(PAGE, KernelClock::new(true)));
    let error = polled(b"<6>a line\n<6>[    T1] another\n", &mut source, 2.5).unwrap_err().to_string();
    assert!(error.contains("write Y to /sys/module/printk/parameters/time"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn cut_anywhere_into_snapshots_each_line_comes_once(mut cuts in proptest::collection::vec(0usize..2000, 1..12), size in 3000usize..80_000) {
        let text: Vec<String> =
            records(fixture!("linux-7.2.13/episode-pod-oom.txt")).iter().map(|record| as_syslog(record)).collect();
        cuts.iter_mut().for_each(|cut| *cut %= text.len());
        cuts.sort_unstable();
        let whole = read_as_syslog(&text.concat());
        let mut log = Log::new(PAGE, KernelClock::new(true));
        let (mut follower, mut newest_look) = (Follower::new(size), None);
        for end in cuts.into_iter().chain([text.len()]) {
            let now = Cell::new(100_000.0);
            let newest = |bytes: usize| {
                let ring = &text[..end];
                let mut first = end;
                let mut room = bytes;
                while first > 0 && ring[first - 1].len() <= room {
                    first -= 1;
                    room -= ring[first].len();
                }
                Ok(ring[first..].concat().into_bytes())
            };
            // A clock that moves, so that no test waits for siblings.
            let clock = || {
                now.set(now.get() + 1.0);
                at(now.get())
            };
            poll(&mut follower, &mut newest_look, newest, &mut log, clock).unwrap();
        }
        prop_assert_eq!((log.records_total, log.losses_of_unknown_size_total), (whole.records_total, 0));
        let pids = |log: &Log| log.newest_kills.iter().map(|kill| kill.kill.pid).collect::<Vec<_>>();
        prop_assert_eq!(pids(&log), pids(&whole));
    }
}

type Line = (u64, u8, u64, String);

fn line_of(record: record::Record) -> impl Iterator<Item = Line> {
    let record::Record { usec, level, facility, text, .. } = record;
    let line = |line: &str| (usec, level, facility, line.to_owned());
    text.split('\n').map(line).collect::<Vec<_>>().into_iter()
}

/// Needs the right to read the kernel log in both ways, and to write it; without it, says so.
#[test]
fn this_machines_own_log_is_the_same_by_both_ways() {
    let host = host(Path::new("/"), Clock::system());
    let (mut kmsg, syslog) = match (host.open_kmsg(), host.open_syslog()) {
        (Ok(kmsg), Ok(syslog)) => (kmsg, syslog),
        (kmsg, syslog) => {
            eprintln!("SKIPPED, this machine's kernel log: {:?} {:?}", kmsg.err(), syslog.err());
            return;
        }
    };
    let mut by_kmsg: Vec<Line> = Vec::new();
    while let Next::Record(raw) = kmsg.next_record().unwrap() {
        by_kmsg.extend(line_of(record::parse(raw).unwrap()));
    }
    let text = syslog.newest(16 * syslog.ring_bytes).unwrap();
    let by_syslog: Vec<Line> =
        lines(&text).flat_map(|line| line_of(record::parse_line(&line, |_, _| 0).unwrap())).collect();
    // Others may write to the log meanwhile, and may have cleared what syslog(2) shows.
    let same =
        (0..by_syslog.len().min(100)).any(|newer| by_kmsg.ends_with(&by_syslog[..by_syslog.len() - newer]));
    assert!(same, "{:?}\n{:?}", by_kmsg.last(), by_syslog.last());
    eprintln!("{} lines by /dev/kmsg, {} by syslog(2)", by_kmsg.len(), by_syslog.len());

    let mut log = Log::new(PAGE, KernelClock::new(true));
    let (mut follower, mut newest_look) = (Follower::new(syslog.ring_bytes), None);
    let now = || Now { stamp: host.clock().stamp(), monotonic: kmsg::monotonic() };
    let mut look = |log: &mut Log| {
        let newest = |bytes| syslog.newest(bytes);
        poll(&mut follower, &mut newest_look, newest, log, now).unwrap();
    };
    look(&mut log);
    let mark = format!("nodewhy-test syslog {}", std::process::id());
    let Ok(mut written) = std::fs::OpenOptions::new().write(true).open(KMSG) else {
        eprintln!("SKIPPED, this machine's kernel log cannot be written");
        return;
    };
    for round in 0..3 {
        written.write_all(format!("<6>{mark} {round}\n").as_bytes()).unwrap();
        look(&mut log);
        look(&mut log);
    }
    let marked: Vec<&str> =
        log.recent.iter().map(|record| record.text.as_str()).filter(|text| text.starts_with(&mark)).collect();
    assert_eq!(marked, [0, 1, 2].map(|round| format!("{mark} {round}")));
    let newest = log.recent.iter().rfind(|record| record.text.starts_with(&mark)).unwrap();
    assert_eq!((newest.seq, newest.level, newest.facility), (None, "info", 1));
    assert!(newest.at.duration_since(host.clock().now()).abs() < jiff::SignedDuration::from_secs(2));
    assert_eq!((log.malformed_total, log.losses_of_unknown_size_total), (0, 0));
}
