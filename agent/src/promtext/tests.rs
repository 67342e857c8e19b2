use proptest::prelude::*;

use super::*;

// Recorded from kubelets 1.32.6 and 1.36.2 (GET /metrics on 10250, one pod of two containers, node healthy).
const OLD: &str = include_str!("../../fixtures/kubelet/kubelet-1.32.6-metrics.txt");
const NEW: &str = include_str!("../../fixtures/kubelet/kubelet-1.36.2-metrics.txt");

static WANTED: &[&str] =
    &["kubelet_pleg_relist_duration_seconds", "kubelet_running_containers", "kubelet_pleg_last_seen_seconds"];

type Told = Vec<(&'static str, Part, Vec<(String, String)>, f64)>;

fn read(text: &[u8], chunk: usize) -> (Told, Counted) {
    let mut reader = Reader::new(WANTED);
    let mut told = Vec::new();
    for piece in text.chunks(chunk) {
        reader.feed(piece, &mut |sample| {
            told.push((sample.family, sample.part, sample.labels.to_vec(), sample.value));
        });
    }
    (told, reader.finish())
}

fn of(text: &str) -> (Told, Counted) {
    read(text.as_bytes(), 4096)
}

#[test]
fn recorded_kubelets_are_read_wholly_in_chunks_of_any_size() {
    for (text, relists) in [(OLD, 1.0), (NEW, 1.0)] {
        let (told, counted) = of(text);
        assert_eq!((counted.broken, counted.too_long), (0, 0));
        assert_eq!(counted.lines, text.lines().count() as u64);
        assert_eq!(counted.samples, told.len() as u64);
        for chunk in [1, 7, 1000, text.len()] {
            assert_eq!(read(text.as_bytes(), chunk), (told.clone(), counted), "chunks of {chunk}");
        }
        let mut relist = Histogram::default();
        for (_, part, _, value) in
            told.iter().filter(|(family, ..)| family.ends_with("relist_duration_seconds"))
        {
            relist.add(*part, *value);
        }
        assert!(relist.count.unwrap() > relists);
        assert_eq!(relist.buckets.last(), Some(&(f64::INFINITY, relist.count.unwrap())));
        assert_eq!(relist.buckets.len(), 12);
        assert!(relist.quantile(0.99).unwrap() > 0.0);
        let running: Vec<_> =
            told.iter().filter(|(family, ..)| *family == "kubelet_running_containers").collect();
        assert!(running.iter().any(|(_, _, labels, value)| labels[0].1 == "running" && *value == 2.0));
    }
}

#[test]
fn escapes_times_exemplars_and_odd_numbers() {
    // The first line is the format's own example of escaping, with a wanted name; the exemplar is OpenMetrics' own.
    let text = "kubelet_running_containers{path=\"C:\\\\DIR\\\\FILE.TXT\",error=\"Cannot find file:\\n\\\"FILE.TXT\\\"\"} 1.458255915e9\n\
                kubelet_running_containers{a=\"x\" , b = \"}\" ,} 1 1395066363000\n\
                kubelet_running_containers NaN\n\
                kubelet_running_containers{} -Inf\n\
                kubelet_pleg_relist_duration_seconds_bucket{le=\"+Inf\"} 17 # {trace_id=\"oHg5SJYRHA0\"} 9.8 1520879607.789\n\
                # EOF\n";
    let (told, counted) = of(text);
    assert_eq!((told.len(), counted.broken), (5, 0));
    assert_eq!(told[0].2[1].1, "Cannot find file:\n\"FILE.TXT\"");
    assert_eq!(told[1].2, [("a".to_owned(), "x".to_owned()), ("b".to_owned(), "}".to_owned())]);
    assert!(told[2].3.is_nan());
    assert_eq!(told[3].3, f64::NEG_INFINITY);
    assert_eq!(told[4].1, Part::Bucket(f64::INFINITY));
}

#[test]
fn what_is_broken_is_counted_and_is_no_zero() {
    for line in [
        "kubelet_running_containers\n",
        "kubelet_running_containers \n",
        "kubelet_running_containers x\n",
        "kubelet_running_containers{a=\"x} 1\n",
        "kubelet_running_containers{a=x} 1\n",
        "kubelet_running_containers{a=\"x\"b=\"y\"} 1\n",
        "kubelet_running_containers 1 2 3\n",
        "kubelet_pleg_relist_duration_seconds_bucket 1\n",
        "kubelet_pleg_relist_duration_seconds_bucket{le=\"x\"} 1\n",
        "<html>\n",
        "kubelet_running_containers 12",
    ] {
        let (told, counted) = of(line);
        assert_eq!((told.len(), counted.broken), (0, 1), "{line:?}");
    }
    let (told, counted) = of("not_wanted{ garbage\nkubelet_running_containers_total 1\n");
    assert_eq!((told.len(), counted.broken, counted.lines), (0, 0, 2));
}

#[test]
fn a_line_without_an_end_takes_no_memory_and_costs_only_itself() {
    let mut reader = Reader::new(WANTED);
    let mut told = 0;
    for _ in 0..1000 {
        reader.feed(&[b'a'; 8192], &mut |_| told += 1);
        assert!(reader.line.capacity() <= 2 * LONGEST_LINE_BYTES);
    }
    reader.feed(b"\nkubelet_running_containers 3\n", &mut |_| told += 1);
    let counted = reader.finish();
    assert_eq!((told, counted.too_long, counted.broken, counted.lines), (1, 1, 0, 2));
}

#[test]
fn intervals_and_quantiles() {
    let of = |counts: [f64; 4], sum| Histogram {
        buckets: [0.1, 1.0, 10.0, f64::INFINITY].into_iter().zip(counts).collect(),
        sum: Some(sum),
        count: Some(counts[3]),
    };
    let (before, now) = (of([10.0, 10.0, 10.0, 10.0], 1.0), of([10.0, 20.0, 20.0, 20.0], 6.0));
    let since = now.since(&before).unwrap();
    assert_eq!((since.count, since.sum, since.mean()), (Some(10.0), Some(5.0), Some(0.5)));
    // Half way between 0.1 and 1.
    assert!((since.quantile(0.5).unwrap() - 0.55).abs() < 1e-9);
    assert_eq!(before.since(&now), None, "it began anew");
    assert_eq!(now.since(&now).unwrap().quantile(0.99), None, "nothing was observed");
    assert_eq!(now.since(&now).unwrap().mean(), None);
    assert_eq!(of([0.0, 0.0, 0.0, 5.0], 500.0).quantile(0.99), Some(10.0), "at least so much");
    assert_eq!(now.since(&Histogram::default()), None);
}

proptest! {
    #[test]
    fn every_prefix_gives_the_whole_lines_of_it(cut in 0..OLD.len()) {
        let lines = OLD.as_bytes()[..cut].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (whole, _) = read(&OLD.as_bytes()[..lines], 4096);
        let (told, counted) = read(&OLD.as_bytes()[..cut], 4096);
        prop_assert_eq!(told, whole);
        prop_assert_eq!(counted.broken, u64::from(cut > lines));
    }

    #[test]
    fn a_flipped_byte_never_panics(at in 0..4000_usize, byte: u8) {
        let start = OLD.find("kubelet_pleg_relist_duration_seconds_bucket").unwrap();
        let mut bytes = OLD.as_bytes()[start..start + 4000].to_vec();
        bytes[at] = byte;
        read(&bytes, 100);
    }

    #[test]
    fn any_bytes_are_taken(bytes in prop::collection::vec(any::<u8>(), 0..500), chunk in 1..50_usize) {
        read(&bytes, chunk);
    }

    #[test]
    fn any_labels_are_taken(inside in "kubelet_running_containers\\{[a-c=\"\\\\,} 1é]{0,40}\n") {
        let (told, counted) = of(&inside);
        prop_assert_eq!(told.len() as u64 + counted.broken, 1);
    }
}
