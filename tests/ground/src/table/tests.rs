use nodewhy_guest::channel::Clocks;
use nodewhy_proto::{Role, SubjectKind};
use serde_json::json;

use super::*;
use crate::evidence::tests::{at, truth};
use crate::evidence::{Answer, Heard, Said, Served, Stream};
use crate::fault::{Sees, What};

static HUNG: Fault = Fault {
    name: "containerd-hung",
    about: "containerd is stopped with SIGSTOP.",
    cause: "containerd_hung",
    subject: (SubjectKind::Runtime, "socket"),
    sees: &[
        Sees::of("runtime", What::Finding("runtime_hung")),
        Sees::of("runtime", What::Finding("relist_slow")),
        Sees::not_in_pod("oom", What::OomKill(Role::Kubelet), "it may not read /dev/kmsg"),
    ],
    ..Fault::USUAL
};

static LEAKED: Fault = Fault {
    name: "ipam-leaked",
    about: "all addresses are taken",
    cause: "ipam_leak_exhausted",
    subject: (SubjectKind::Cni, "ground"),
    unseen: Some("the files of host-local's allocations are not read yet"),
    ..Fault::USUAL
};

static GROUPS: &[(&str, &[&Fault])] = &[("Runtime", &[&HUNG]), ("CNI", &[&LEAKED])];

/// The fault began 10 s after the run, by all clocks.
fn since() -> Clocks {
    let unix_nanos = i64::try_from(at(10_000).as_nanosecond()).unwrap();
    Clocks { unix_nanos, boot_nanos: 110_000_000_000, monotonic_nanos: 0 }
}

/// The stream's words of a finding that began so long after the fault.
fn began(after_millis: i64, finding: &str) -> Heard {
    let finding = json!({
        "id": finding, "finding": finding, "collector": "runtime", "subject": {"kind": "runtime"},
        "severity": "critical", "began": at(0), "noticed": at(0), "summary": "it hangs", "evidence": [],
    });
    let boot = std::time::Duration::from_millis(u64::try_from(110_000 + after_millis).unwrap());
    let event = json!({
        "id": "1", "cursor": "1-1", "at": at(10_000 + after_millis), "boot_seconds": boot.as_secs_f64(),
        "boot_id": "boot", "source": "runtime", "kind": "finding_began", "finding": finding,
    });
    let what = Stream::Event { id: None, data: event.to_string() };
    Heard { received: at(10_000 + after_millis + 20), what }
}

fn served(events: Vec<Heard>) -> Served {
    let info = json!({
        "id": {"name": "node", "boot_id": "boot"}, "now": at(0), "uptime_seconds": 100.0,
        "agent": {"version": "0.1.0", "started": at(0), "host_root": "/"},
    });
    let said = Said::Body { status: 200, body: info.to_string() };
    Served { node: vec![Answer { asked: at(0), received: at(0), said }], events, ..Served::default() }
}

fn evidence(host: Vec<Heard>, pod: Vec<Heard>) -> BTreeMap<String, Evidence> {
    let mut truth = truth("containerd-hung");
    truth.injected.since = since();
    let agents = [(Way::Host, served(host)), (Way::Pod, served(pod))].into();
    [("containerd-hung".to_owned(), Evidence { truth, agents, kmsg: None })].into()
}

/// What stands between the intro and what a container changes.
fn tables(page: &str) -> &str {
    let (start, end) =
        (page.find("## Runtime").unwrap(), page.find("\n## What a container changes").unwrap());
    &page[start..end]
}

#[test]
fn a_fault_without_evidence_is_not_run() {
    let page = page(GROUPS, &BTreeMap::new(), &BTreeMap::new());
    assert!(page.contains("\n2 faults; the evidence of 0 is kept.\n"));
    let expected = "\
## Runtime

| fault             | true cause        | sign                          | host    | container |
| ----------------- | ----------------- | ----------------------------- | ------- | --------- |
| `containerd-hung` | `containerd_hung` | runtime: finding runtime_hung | not run | not run   |
|                   |                   | runtime: finding relist_slow  | not run | not run   |
|                   |                   | oom: OOM kill of the kubelet  | not run | not run   |

- `containerd-hung`: containerd is stopped with SIGSTOP.
  A container cannot see the OOM kill of the kubelet: it may not read /dev/kmsg.

## CNI

| fault         | true cause            | sign     | host    | container |
| ------------- | --------------------- | -------- | ------- | --------- |
| `ipam-leaked` | `ipam_leak_exhausted` | none yet | not run | not run   |

- `ipam-leaked`: all addresses are taken.
  No sign yet: the files of host-local's allocations are not read yet.
";
    assert_eq!(tables(&page), expected);
}

#[test]
fn each_agent_has_its_figure_and_each_verdict_its_place() {
    let host =
        vec![began(3_240, "runtime_hung"), began(12_400, "relist_slow"), began(13_000, "runtime_slow")];
    let pod = vec![began(9_949, "runtime_hung"), began(9_951, "relist_slow")];
    let mut evidence = evidence(host, pod);
    let verdicts = |host: &str, pod: &str| {
        let both = [(Way::Host, host.to_owned()), (Way::Pod, pod.to_owned())].into();
        [("containerd-hung".to_owned(), both)].into()
    };
    let judged = page(GROUPS, &evidence, &verdicts("root", "could | not"));
    let expected = "\
## Runtime

| fault             | true cause        | sign                          | host     | container | verdict                             |
| ----------------- | ----------------- | ----------------------------- | -------- | --------- | ----------------------------------- |
| `containerd-hung` | `containerd_hung` | runtime: finding runtime_hung | 3.2 s    | 9.9 s     | host: root; container: could \\| not |
|                   |                   | runtime: finding relist_slow  | 12 s     | 10 s      |                                     |
|                   |                   | oom: OOM kill of the kubelet  | not seen | cannot    |                                     |

- `containerd-hung`: containerd is stopped with SIGSTOP.
  A container cannot see the OOM kill of the kubelet: it may not read /dev/kmsg.
  Found as well (host): `runtime_slow` after 13 s.
  Recorded on Linux 6.1.0-0-cloud-amd64 in 40 s.
";
    assert_eq!(tables(&judged).split("\n## CNI").next(), Some(expected));
    assert!(page(GROUPS, &evidence, &verdicts("root", "root")).contains(" | root "));

    evidence.get_mut("containerd-hung").unwrap().agents.remove(&Way::Pod);
    assert_eq!(page(GROUPS, &evidence, &BTreeMap::new()).matches("not followed").count(), 3);
}
