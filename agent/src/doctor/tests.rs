use nodewhy_clock::Clock;
use serde_json::json;

use super::*;
use crate::host::Places;
use crate::host::own::Standing;

fn state(outcome: Outcome, reading: Option<Value>) -> CollectorState {
    CollectorState {
        outcome,
        read_at: None,
        age_seconds: None,
        took_seconds: None,
        every_seconds: 1.0,
        ticks: None,
        summary: reading.as_ref().map(|_| "it reads".to_owned()),
        reading,
    }
}

fn a_report(sources: Vec<Source>, rights: Vec<Right>) -> Report {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    Report {
        node: "worker-7".to_owned(),
        distribution: distribution::of(&host),
        rights,
        sources,
        blind_spots: Vec::new(),
    }
}

#[test]
fn a_reading_says_itself_what_it_lacks() {
    let reading = json!({
        "irq_error": "cannot read /proc/pressure/irq: EOPNOTSUPP",
        "errors_total": 7,
        "status": {"error": "connection refused"},
        "missing": [{"what": "nft", "why": "needs CAP_NET_ADMIN"}, {"why": "no journal"}, 7],
        "limits": ["up to 1 s late"],
        "deep": {"deeper": {"deepest": {"x_error": "of a single disk"}}},
    });
    let source = source("pressure", &state(Outcome::Read, Some(reading)));
    assert_eq!(source.works, Works::Part);
    assert_eq!(
        source.missing,
        [
            "irq: cannot read /proc/pressure/irq: EOPNOTSUPP",
            "up to 1 s late",
            "nft: needs CAP_NET_ADMIN",
            "no journal"
        ]
    );
}

#[test]
fn absence_is_no_lack_and_failure_is() {
    let absent = source("cni", &state(Outcome::Absent { why: "no CNI here".to_owned() }, None));
    let failed = source("oom", &state(Outcome::Failed { error: "EPERM".to_owned() }, None));
    let whole = source("memory", &state(Outcome::Read, Some(json!({}))));
    assert_eq!((absent.works, failed.works, whole.works), (Works::Absent, Works::No, Works::Yes));
    assert!(!a_report(vec![absent, whole], Vec::new()).lacks());
    assert!(failed.lost.unwrap().contains("OOM kills"));
    assert!(a_report(vec![failed], Vec::new()).lacks());
}

#[test]
fn a_pod_without_rights_is_told_each_with_its_price_and_its_recipe() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    // The bits of a container of containerd's defaults: CAP_SYSLOG, CAP_SYS_PTRACE and CAP_NET_ADMIN are not in them.
    let standing = Standing {
        uid: Some(65534),
        capabilities: Some(0xa804_25fb),
        seccomp: Some(2),
        label: Some("cri-containerd.apparmor.d (enforce)".to_owned()),
        sees_host_processes: Some(false),
    };
    let rights = rights::rights(&standing, &host);
    let lacks: Vec<&str> =
        rights.iter().filter(|right| right.held == Some(false)).map(|right| right.what).collect();
    for lacking in
        ["root", "CAP_SYSLOG", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "no confinement", "the host's folders"]
    {
        assert!(lacks.contains(&lacking), "{lacking} not in {lacks:?}");
    }
    // There is no /proc/1 under this root: nobody knows whose network it is.
    assert!(rights.iter().any(|right| right.what == "hostNetwork" && right.held.is_none()));
    let all = Standing { capabilities: Some(0x1ff_ffff_ffff), label: None, uid: Some(0), ..standing };
    let rights = rights::rights(&all, &host);
    assert!(rights.iter().take(6).all(|right| right.held == Some(true)), "{rights:?}");
    let text = text(&a_report(Vec::new(), rights::rights(&Standing::default(), &host)));
    assert!(text.contains("? CAP_SYSLOG"), "{text}");
}

#[test]
fn the_text_is_never_wider_than_80_columns_and_what_is_broken_stands_first() {
    let long = "cannot open /sys/fs/cgroup/kubepods.slice/kubepods-burstable.slice/memory.pressure: EACCES "
        .repeat(4);
    let mut sources: Vec<Source> = crate::collect::COLLECTORS
        .iter()
        .map(|collector| source(collector.name(), &state(Outcome::Read, Some(json!({"a_error": long})))))
        .collect();
    sources.push(source("netfilter", &state(Outcome::Failed { error: long.clone() }, None)));
    sources.sort_by_key(|source| source.works);
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let text = text(&a_report(sources, rights::rights(&Standing::default(), &host)));
    let wide: Vec<&str> =
        text.lines().filter(|line| line.chars().count() > 80 && line.contains(' ')).collect();
    assert!(wide.iter().all(|line| line.trim().split(' ').count() <= 3), "{wide:#?}");
    let first = text.lines().skip_while(|line| *line != "SOURCES").nth(1).unwrap();
    assert!(first.starts_with("  ✗ netfilter"), "{first}");
}

#[test]
fn a_network_namespace_of_its_own_is_told_where_no_process_may_be_traced() {
    let root = tempfile::tempdir().unwrap();
    // As AppArmor's default profile leaves it: there is no /proc/1/ns/net to look at.
    crate::host::process::made::other_network(root.path());
    let host = Host::new(root.path(), Clock::system(), Places::default());
    let rights = rights::rights(&Standing::default(), &host);
    let network = rights.iter().find(|right| right.what == "hostNetwork").unwrap();
    assert_eq!(network.held, Some(false), "{network:?}");
}
