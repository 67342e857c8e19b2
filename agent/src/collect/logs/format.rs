//! The forms in which the programs of a node write a line: klog (Kubernetes), logfmt (containerd, CRI-O, Cilium), JSON
//! (etcd, the VPC CNI, Docker's files), and the prefix that the runtime writes before each line of a container (CRI).
//!
//! klog: `E1121 08:31:47.123456    1974 kubelet.go:3002] "Message" key="value" other=3`: no year, and the zone of the
//! writer, which is not told (k8s.io/klog/v2, `header`).

use jiff::{SignedDuration, Timestamp, civil};

/// A line, taken apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Parsed {
    /// When the program says that it wrote the line.
    pub(super) written: Option<Written>,
    /// The message.
    pub(super) message: String,
    /// `key=value`, in order.
    pub(super) values: Vec<(String, String)>,
}

/// A line's own time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Written {
    /// With its date and zone.
    At(Timestamp),
    /// klog's: month, day and time of day, in a zone that is not told.
    Clock { month: i8, day: i8, time: civil::Time },
}

/// A pair of JSON's or logfmt's that is the message, and one that is the time.
const MESSAGES: &[&str] = &["msg", "message"];
const TIMES: &[&str] = &["time", "ts", "timestamp"];

/// A line is never read as late as this; then its time is another zone's.
const LATEST: SignedDuration = SignedDuration::from_mins(30);
/// Clocks are read at slightly different moments.
const AHEAD: SignedDuration = SignedDuration::from_secs(2);
/// All zones of the world are a multiple of this.
const ZONES: i64 = 15 * 60;

/// The line of a container's log file without the runtime's prefix, and the time in that prefix.
/// `2026-11-21T07:46:21.058Z stderr F text`; Docker's are JSON.
pub(super) fn container_line(line: &str) -> (Option<Timestamp>, String) {
    let mut parts = line.splitn(4, ' ');
    if let (Some(time), Some("stdout" | "stderr"), Some(tag), Some(text)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
        && let Ok(at) = time.parse()
        && tag.split(':').all(|tag| matches!(tag, "F" | "P"))
    {
        return (Some(at), text.to_owned());
    }
    if line.starts_with('{')
        && let Ok(serde_json::Value::Object(object)) = serde_json::from_str(line)
        && let (Some(log), Some(time)) = (text_of(&object, "log"), text_of(&object, "time"))
        && let Ok(at) = time.parse()
    {
        return (Some(at), log.trim_end().to_owned());
    }
    (None, line.to_owned())
}

fn text_of<'a>(object: &'a serde_json::Map<String, serde_json::Value>, key: &str) -> Option<&'a str> {
    object.get(key)?.as_str()
}

/// Takes a line apart, whatever its form; one of no known form is all message.
pub(super) fn parse(line: &str) -> Parsed {
    klog(line)
        .or_else(|| json(line))
        .or_else(|| logfmt(line))
        .unwrap_or_else(|| Parsed { message: line.to_owned(), ..Parsed::default() })
}

fn klog(line: &str) -> Option<Parsed> {
    let severity = line.chars().next()?;
    if !matches!(severity, 'I' | 'W' | 'E' | 'F') {
        return None;
    }
    let (head, text) = line.split_once("] ")?;
    let mut head = head.get(1..)?.split_ascii_whitespace();
    let (date, time) = (head.next()?, head.next()?);
    if date.len() != 4 {
        return None;
    }
    let month = date.get(..2)?.parse().ok()?;
    let day = date.get(2..)?.parse().ok()?;
    let written = Some(Written::Clock { month, day, time: time.parse().ok()? });
    let (message, rest) = match text.strip_prefix('"').and_then(until_quote) {
        Some((message, rest)) => (message, rest),
        None => (text.to_owned(), ""),
    };
    Some(Parsed { written, message, values: pairs(rest) })
}

fn json(line: &str) -> Option<Parsed> {
    let serde_json::Value::Object(object) = serde_json::from_str(line).ok()? else { return None };
    let mut parsed = Parsed::default();
    for (key, value) in object {
        let text = match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        parsed.pair(key, text);
    }
    Some(parsed)
}

fn logfmt(line: &str) -> Option<Parsed> {
    let mut parsed = Parsed::default();
    for (key, value) in pairs(line) {
        parsed.pair(key, value);
    }
    (!parsed.message.is_empty()).then_some(parsed)
}

impl Parsed {
    fn pair(&mut self, key: String, value: String) {
        if MESSAGES.contains(&key.as_str()) {
            self.message = value;
        } else if TIMES.contains(&key.as_str()) {
            self.written = timestamp(&value).map(Written::At);
        } else {
            self.values.push((key, value));
        }
    }

    /// A value by its key.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.values.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }
}

/// RFC 3339, also with a zone like `+0000`; or seconds since 1970, as some write JSON.
fn timestamp(text: &str) -> Option<Timestamp> {
    if let Ok(at) = text.parse() {
        return Some(at);
    }
    let seconds: f64 = text.parse().ok().filter(|seconds: &f64| *seconds > 1e9)?;
    SignedDuration::try_from_secs_f64(seconds).ok().and_then(|since| Timestamp::from_duration(since).ok())
}

/// `key="value with \"quotes\"" other=3 more={"json":1}`; what is no pair is passed over.
fn pairs(mut text: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    // A line has few; one that is made of nothing else may not cost more.
    while pairs.len() < 64 {
        text = text.trim_start();
        let Some(end) = text.find(['=', ' ']) else { break };
        let (key, rest) = text.split_at(end);
        let Some(rest) = rest.strip_prefix('=') else {
            text = rest;
            continue;
        };
        let (value, rest) = match rest.strip_prefix('"') {
            Some(quoted) => until_quote(quoted).unwrap_or((quoted.to_owned(), "")),
            None => {
                let end = rest.find(' ').unwrap_or(rest.len());
                let (value, rest) = rest.split_at(end);
                (value.to_owned(), rest)
            }
        };
        pairs.push((key.to_owned(), value));
        text = rest;
    }
    pairs
}

/// The text to the closing quote, unescaped as Go quotes, and the rest.
fn until_quote(text: &str) -> Option<(String, &str)> {
    let (mut value, mut escaped) = (String::new(), false);
    for (at, letter) in text.char_indices() {
        match (escaped, letter) {
            (false, '\\') => escaped = true,
            (false, '"') => return Some((value, text.get(at + 1..)?)),
            (true, letter) => {
                value.push(match letter {
                    'n' => '\n',
                    't' => '\t',
                    other => other,
                });
                escaped = false;
            }
            (false, letter) => value.push(letter),
        }
    }
    None
}

/// When the line was written by its own word; `None` where that makes no sense beside the time at which it was taken.
pub(super) fn written_at(written: Written, taken: Timestamp) -> Option<Timestamp> {
    match written {
        Written::At(at) => {
            let late = taken.duration_since(at);
            (late >= -AHEAD && late <= LATEST).then_some(at)
        }
        Written::Clock { month, day, time } => {
            let year = taken.to_zoned(jiff::tz::TimeZone::UTC).year();
            let late = [year, year - 1, year + 1].into_iter().find_map(|year| {
                let date = civil::Date::new(year, month, day).ok()?;
                let as_utc = date.to_datetime(time).to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp();
                let late = taken.duration_since(as_utc);
                (late.abs() < SignedDuration::from_hours(24)).then_some(late)
            })?;
            if late >= -AHEAD && late <= LATEST {
                return taken.checked_sub(late).ok();
            }
            // The writer's zone is another: what is left over after whole zones is how late the line was taken.
            let rest = (late + AHEAD).as_millis().rem_euclid(i128::from(ZONES) * 1000);
            let rest = SignedDuration::from_millis(i64::try_from(rest).ok()?) - AHEAD;
            taken.checked_sub(rest).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // Recorded from kubelet 1.32.6 (Debian 12, episode runtime-down), containerd 1.6.20 (episode cni-uninitialized) and
    // etcd (a public report of a slow disk).
    const KLOG: &str = r#"E1121 07:56:11.362468     734 kubelet.go:3002] "Container runtime sanity check failed" err="rpc error: code = Unavailable desc = connection error: desc = \"transport: Error while dialing: dial unix /run/containerd/containerd.sock: connect: no such file or directory\"""#;
    const LOGFMT: &str = r#"time="2026-11-21T08:31:49.539614105Z" level=error msg="failed to load cni during init, please check CRI plugin status before setting up network for pods" error="cni config load failed: no network config found in /etc/cni/net.d: cni plugin not initialized: failed to load cni config""#;
    const JSON: &str = r#"{"level":"warn","ts":"2023-03-03T01:45:11.871Z","caller":"wal/wal.go:805","msg":"slow fdatasync","took":"1.044022245s","expected-duration":"1s"}"#;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn klog_with_its_quotes() {
        let parsed = parse(KLOG);
        assert_eq!(parsed.message, "Container runtime sanity check failed");
        let err = parsed.value("err").unwrap();
        assert!(err.ends_with(r#"desc = "transport: Error while dialing: dial unix /run/containerd/containerd.sock: connect: no such file or directory""#), "{err}");
        let written = written_at(parsed.written.unwrap(), at("2026-11-21T07:56:11.4Z"));
        assert_eq!(written, Some(at("2026-11-21T07:56:11.362468Z")));
    }

    #[test]
    fn klog_without_structure_is_all_message() {
        // kubelet 1.32.6, episode pleg's head line of another form (k8s#74169).
        let line = "W1121 08:31:47.474211    1974 eviction_manager.go:330] eviction manager: attempting to reclaim ephemeral-storage";
        assert_eq!(parse(line).message, "eviction manager: attempting to reclaim ephemeral-storage");
    }

    #[test]
    fn logfmt_and_json() {
        let parsed = parse(LOGFMT);
        assert!(parsed.message.starts_with("failed to load cni during init"));
        assert!(parsed.value("error").unwrap().starts_with("cni config load failed"));
        assert_eq!(parsed.written, Some(Written::At(at("2026-11-21T08:31:49.539614105Z"))));
        let parsed = parse(JSON);
        assert_eq!((parsed.message.as_str(), parsed.value("took")), ("slow fdatasync", Some("1.044022245s")));
        assert_eq!(parsed.written, Some(Written::At(at("2023-03-03T01:45:11.871Z"))));
    }

    #[test]
    fn the_runtimes_prefix_and_dockers() {
        // The form is kubelet's (pkg/kubelet/kuberuntime/logs: "2016-10-06T00:17:09.669794202Z stdout P log content 1").
        let (time, text) = container_line("2016-10-06T00:17:09.669794202Z stdout P log content 1");
        assert_eq!((time, text.as_str()), (Some(at("2016-10-06T00:17:09.669794202Z")), "log content 1"));
        let docker = r#"{"log":"1:M 09 Nov 13:27:36.276 # User requested shutdown...\n","stream":"stdout", "time":"2016-10-20T18:39:20.57606443Z"}"#;
        let (time, text) = container_line(docker);
        assert_eq!(time, Some(at("2016-10-20T18:39:20.57606443Z")));
        assert_eq!(text, "1:M 09 Nov 13:27:36.276 # User requested shutdown...");
        assert_eq!(container_line("plain stdout F").0, None);
    }

    #[test]
    fn a_zone_that_is_not_told_is_seen_by_its_quarter_hours() {
        let taken = at("2026-11-21T07:56:12Z");
        let clock = |time: &str, day| Written::Clock { month: 11, day, time: time.parse().unwrap() };
        assert_eq!(written_at(clock("07:56:11.5", 21), taken), Some(at("2026-11-21T07:56:11.5Z")));
        // Nepal is 5:45 ahead, Newfoundland 3:30 behind.
        assert_eq!(written_at(clock("13:41:11.5", 21), taken), Some(at("2026-11-21T07:56:11.5Z")));
        assert_eq!(written_at(clock("04:26:11.5", 21), taken), Some(at("2026-11-21T07:56:11.5Z")));
        assert_eq!(written_at(clock("20:56:11.5", 20), taken), Some(at("2026-11-21T07:56:11.5Z")));
        // 37 s late on a starved node.
        assert_eq!(written_at(clock("07:55:35", 21), taken), Some(at("2026-11-21T07:55:35Z")));
        assert_eq!(written_at(clock("07:55:35", 1), taken), None);
        let newyear = at("2027-01-01T00:00:01Z");
        let clock = Written::Clock { month: 12, day: 31, time: "23:59:59".parse().unwrap() };
        assert_eq!(written_at(clock, newyear), Some(at("2026-12-31T23:59:59Z")));
        assert_eq!(written_at(Written::At(at("2020-01-01T00:00:00Z")), taken), None);
    }

    proptest! {
        #[test]
        fn cut_and_flipped_lines_are_taken(which in 0usize..3, cut in 0usize..400, flip: u8) {
            let line = [KLOG, LOGFMT, JSON][which];
            let cut = cut % line.len();
            parse(line.get(..cut).unwrap());
            let mut flipped = line.as_bytes().to_vec();
            flipped[cut] ^= flip;
            let parsed = parse(&String::from_utf8_lossy(&flipped));
            if let Some(written) = parsed.written {
                written_at(written, Timestamp::UNIX_EPOCH);
                written_at(written, Timestamp::MAX);
            }
        }

        #[test]
        fn any_text_is_taken(text in "\\PC*") {
            parse(&text);
            container_line(&text);
        }
    }
}
