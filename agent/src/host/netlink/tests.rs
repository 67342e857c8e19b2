use proptest::prelude::*;

use super::*;
use crate::host::Places;

fn host() -> Host {
    Host::new("/", Clock::system(), Places::default())
}

/// `struct ifinfomsg`, all zero: every link.
const LINKS: [u8; 16] = [0; 16];
const LIMIT: Duration = Duration::from_secs(5);

fn links(netlink: &mut Netlink) -> Vec<String> {
    let mut names = Vec::new();
    let told = netlink.dump(libc::RTM_GETLINK, &LINKS, LIMIT, |header, payload| {
        assert_eq!(header.kind, libc::RTM_NEWLINK);
        if let Some(name) = Attributes::behind(16, payload)?.find(libc::IFLA_IFNAME)? {
            names.push(name.text()?.to_owned());
        }
        Ok(ControlFlow::Continue(()))
    });
    assert_eq!(usize::try_from(told.unwrap().messages).unwrap(), names.len());
    names.sort();
    names
}

#[test]
fn the_links_of_this_machine_as_sysfs_lists_them() {
    let mut netlink = Netlink::open(&host(), Protocol::Route).unwrap();
    // The machine's own /sys may be that of another network namespace; /proc/self/net is ours.
    let text = host().read("/proc/self/net/dev").unwrap();
    let mut expected: Vec<String> =
        text.lines().skip(2).map(|line| line.split(':').next().unwrap().trim().to_owned()).collect();
    expected.sort();
    assert_eq!(links(&mut netlink), expected);
}

#[test]
fn a_dump_that_is_left_does_not_spoil_the_next() {
    let mut netlink = Netlink::open(&host(), Protocol::Route).unwrap();
    let whole = links(&mut netlink);
    let told = netlink.dump(libc::RTM_GETLINK, &LINKS, LIMIT, |_, _| Ok(ControlFlow::Break(()))).unwrap();
    assert!(told.stopped);
    let failed =
        netlink.dump(libc::RTM_GETLINK, &LINKS, LIMIT, |_, _| Err(NetlinkError::Malformed("x".to_owned())));
    failed.unwrap_err();
    assert_eq!(links(&mut netlink), whole);
}

#[test]
fn a_question_is_answered_or_refused_with_the_kernels_word() {
    let mut netlink = Netlink::open(&host(), Protocol::Route).unwrap();
    let named = |name: &str| Payload::new(&LINKS).with_text(libc::IFLA_IFNAME, name).unwrap();
    let mut seen = Vec::new();
    netlink
        .request(libc::RTM_GETLINK, named("lo").bytes(), LIMIT, |_, payload| {
            let name = Attributes::behind(16, payload)?.find(libc::IFLA_IFNAME)?;
            seen.push(name.ok_or(Cut)?.text()?.to_owned());
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, ["lo"]);
    let refused = netlink.request(libc::RTM_GETLINK, named("no-such-link").bytes(), LIMIT, |_, _| Ok(()));
    assert!(matches!(refused, Err(NetlinkError::Refused(Errno::ENODEV))), "{refused:?}");
}

#[test]
fn an_answer_that_does_not_come_is_late() {
    let mut netlink = Netlink::open(&host(), Protocol::Route).unwrap();
    let late = netlink.dump(libc::RTM_GETLINK, &LINKS, Duration::ZERO, |_, _| Ok(ControlFlow::Continue(())));
    assert!(matches!(late, Err(NetlinkError::Late(_))), "{late:?}");
    assert!(links(&mut netlink).contains(&"lo".to_owned()));
}

#[test]
fn a_made_up_root_has_no_network_to_compare_with() {
    let root = tempfile::tempdir().unwrap();
    let host = Host::new(root.path(), Clock::system(), Places::default());
    assert!(matches!(host.network_is_hosts(), NetworkNamespace::Unknown { .. }));
}

#[test]
fn attributes_that_were_built_are_read_again() {
    let payload = Payload::new(&[1, 2, 3, 4]).with_text(7, "nat").unwrap().with(9, &5_u32.to_be_bytes());
    let payload = payload.unwrap();
    let read: Vec<_> =
        Attributes::behind(4, payload.bytes()).unwrap().map(|attribute| attribute.unwrap()).collect();
    assert_eq!(read.len(), 2);
    assert_eq!((read[0].kind, read[0].text()), (7, Ok("nat")));
    assert_eq!((read[1].kind, read[1].u32_be(), read[1].u16_be()), (9, Ok(5), Err(Cut)));
    assert!(Attributes::behind(4, &[1, 2]).is_err());
}

proptest! {
    #[test]
    fn cut_attributes_are_an_error_and_never_fewer(cut in 0..16_usize) {
        let whole = Payload::new(&[]).with(1, &[1, 2, 3, 4]).unwrap().with(2, &[5, 6, 7, 8]).unwrap();
        let read: Vec<_> = Attributes::new(&whole.bytes()[..cut]).collect();
        let complete = cut % 8 == 0;
        prop_assert_eq!(read.iter().all(|attribute| attribute.is_ok()), complete);
    }

    #[test]
    fn any_bytes_are_walked_to_their_end(bytes: Vec<u8>) {
        prop_assert!(Attributes::new(&bytes).count() <= bytes.len() / 4 + 1);
        let mut rest = bytes.as_slice();
        while let Ok((_, _, next)) = split(rest) {
            prop_assert!(next.len() < rest.len());
            rest = next;
        }
        ended(3, &bytes).ok();
        ended(2, &bytes).ok();
    }
}
