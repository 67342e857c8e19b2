//! The Prometheus text format, read line by line as it comes in: an answer of megabytes costs one line of memory.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>. Exemplars and `# EOF` of OpenMetrics are taken too.
//! A line that is too long or that makes no sense is counted and left out; it never becomes a zero.

/// No line of a real exporter is longer; one that is is skipped to its end, and counted.
const LONGEST_LINE_BYTES: usize = 64 * 1024;

/// What a sample is of its family.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Part {
    /// The family's own value: counter, gauge, quantile of a summary.
    Value,
    /// A histogram's bucket: how many observations were at most this much. The last one is infinite.
    Bucket(f64),
    /// A histogram's or summary's sum.
    Sum,
    /// A histogram's or summary's count.
    Count,
}

/// A sample of a wanted family.
#[derive(Debug, PartialEq)]
pub struct Sample<'a> {
    /// The family, as wanted.
    pub family: &'static str,
    /// What it is of it.
    pub part: Part,
    /// The labels in their order; a bucket's `le` is in `part`.
    pub labels: &'a [(String, String)],
    /// The value. NaN and the infinities are values here: who reads it decides.
    pub value: f64,
}

impl Sample<'_> {
    /// A label's value.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What was met besides samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counted {
    /// Lines, comments and empty ones included.
    pub lines: u64,
    /// Wanted samples that were given.
    pub samples: u64,
    /// Lines of wanted families that make no sense, and lines that are no text at all.
    pub broken: u64,
    /// Lines that were longer than any real one.
    pub too_long: u64,
}

/// Takes chunks as they come.
#[derive(Debug)]
pub struct Reader {
    wanted: &'static [&'static str],
    line: Vec<u8>,
    is_skipping: bool,
    labels: Vec<(String, String)>,
    counted: Counted,
}

impl Reader {
    /// For these families: `kubelet_pleg_relist_duration_seconds` stands for its buckets, sum and count too.
    pub fn new(wanted: &'static [&'static str]) -> Reader {
        let (line, labels) = (Vec::new(), Vec::new());
        Reader { wanted, line, is_skipping: false, labels, counted: Counted::default() }
    }

    /// Takes the next chunk, and tells the samples whose lines end in it.
    pub fn feed(&mut self, mut chunk: &[u8], each: &mut impl FnMut(&Sample<'_>)) {
        while let Some(end) = chunk.iter().position(|byte| *byte == b'\n') {
            let (piece, rest) = chunk.split_at(end);
            chunk = rest.get(1..).unwrap_or_default();
            self.counted.lines += 1;
            if std::mem::take(&mut self.is_skipping) {
                continue;
            }
            if self.line.len() + piece.len() > LONGEST_LINE_BYTES {
                self.counted.too_long += 1;
                self.line.clear();
                continue;
            }
            if self.line.is_empty() {
                self.take(piece, each);
                continue;
            }
            self.line.extend_from_slice(piece);
            let line = std::mem::take(&mut self.line);
            self.take(&line, each);
            self.line = line;
            self.line.clear();
        }
        if self.is_skipping {
            return;
        }
        if self.line.len() + chunk.len() > LONGEST_LINE_BYTES {
            self.counted.too_long += 1;
            self.is_skipping = true;
            self.line = Vec::new();
        } else {
            self.line.extend_from_slice(chunk);
        }
    }

    /// Ends. A last line without its end was cut, and its number may be another one: it is counted as broken.
    pub fn finish(mut self) -> Counted {
        if !self.line.is_empty() {
            self.counted.lines += 1;
            self.counted.broken += 1;
        }
        self.counted
    }

    fn take(&mut self, line: &[u8], each: &mut impl FnMut(&Sample<'_>)) {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            return;
        }
        let end = line.iter().position(|byte| !is_name(*byte)).unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        let Some(name) = std::str::from_utf8(name).ok().filter(|name| !name.is_empty()) else {
            self.counted.broken += 1;
            return;
        };
        let Some((family, kind)) = family(self.wanted, name) else { return };
        let Some((part, value)) = std::str::from_utf8(rest).ok().and_then(|rest| self.sample(kind, rest))
        else {
            self.counted.broken += 1;
            return;
        };
        self.counted.samples += 1;
        each(&Sample { family, part, labels: &self.labels, value });
    }

    /// What follows the name: labels, value, perhaps a time.
    fn sample(&mut self, kind: Kind, rest: &str) -> Option<(Part, f64)> {
        self.labels.clear();
        let rest = match rest.trim_start().strip_prefix('{') {
            Some(inside) => labels(inside, &mut self.labels)?,
            None => rest.strip_prefix([' ', '\t'])?,
        };
        // An exemplar follows a `#`.
        let rest = rest.split_once(" # ").map_or(rest, |(rest, _)| rest);
        let mut words = rest.split_ascii_whitespace();
        let value = words.next()?.parse().ok()?;
        if let Some(time) = words.next() {
            time.parse::<f64>().ok()?;
        }
        if words.next().is_some() {
            return None;
        }
        let part = match kind {
            Kind::Value => Part::Value,
            Kind::Sum => Part::Sum,
            Kind::Count => Part::Count,
            Kind::Bucket => {
                let at = self.labels.iter().position(|(name, _)| name == "le")?;
                let bound: f64 = self.labels.remove(at).1.parse().ok()?;
                if bound.is_nan() {
                    return None;
                }
                Part::Bucket(bound)
            }
        };
        Some((part, value))
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Value,
    Bucket,
    Sum,
    Count,
}

/// The wanted family that this name is of. A family whose own name ends in `_count` goes before a histogram's count.
fn family(wanted: &'static [&'static str], name: &str) -> Option<(&'static str, Kind)> {
    let find = |name: &str| wanted.iter().find(|family| **family == name).copied();
    if let Some(family) = find(name) {
        return Some((family, Kind::Value));
    }
    [("_bucket", Kind::Bucket), ("_sum", Kind::Sum), ("_count", Kind::Count)]
        .into_iter()
        .find_map(|(ending, kind)| Some((find(name.strip_suffix(ending)?)?, kind)))
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':'
}

/// `a="x",b="y"} 1`: the labels into `into`, and what follows the brace.
fn labels<'a>(mut text: &'a str, into: &mut Vec<(String, String)>) -> Option<&'a str> {
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix('}') {
            return Some(rest);
        }
        let (name, rest) = text.split_once('=')?;
        let name = name.trim_end();
        if name.is_empty() || !name.bytes().all(is_name) {
            return None;
        }
        let (value, rest) = quoted(rest.trim_start().strip_prefix('"')?)?;
        into.push((name.to_owned(), value));
        text = rest.trim_start();
        match text.strip_prefix(',') {
            Some(rest) => text = rest,
            None if text.starts_with('}') => {}
            None => return None,
        }
    }
}

/// Up to the closing quote, `\\`, `\"` and `\n` undone.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut letters = text.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, text.get(at + 1..)?)),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

/// One histogram, gathered from its samples.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Histogram {
    /// Upper bound and how many observations were at most that, bounds ascending; the last is infinite.
    #[serde(skip)]
    pub buckets: Vec<(f64, f64)>,
    /// The sum of all observations.
    pub sum: Option<f64>,
    /// How many there were.
    pub count: Option<f64>,
}

impl Histogram {
    /// No histogram has more buckets; more would be a peer's attempt at our memory.
    const MOST_BUCKETS: usize = 256;

    /// Takes a sample of it. Samples with different labels add up.
    pub fn add(&mut self, part: Part, value: f64) {
        // A NaN says nothing, and would make the sum say nothing too.
        if value.is_nan() {
            return;
        }
        match part {
            Part::Value => {}
            Part::Sum => *self.sum.get_or_insert(0.0) += value,
            Part::Count => *self.count.get_or_insert(0.0) += value,
            Part::Bucket(bound) => {
                match self.buckets.binary_search_by(|(known, _)| known.total_cmp(&bound)) {
                    Ok(at) => {
                        if let Some((_, count)) = self.buckets.get_mut(at) {
                            *count += value;
                        }
                    }
                    Err(at) if self.buckets.len() < Histogram::MOST_BUCKETS => {
                        self.buckets.insert(at, (bound, value));
                    }
                    Err(_) => {}
                }
            }
        }
    }

    /// What was observed since `before`. `None`: it began anew since then, or is not the same histogram.
    pub fn since(&self, before: &Histogram) -> Option<Histogram> {
        let minus = |now: Option<f64>, before: Option<f64>| match (now, before) {
            (Some(now), Some(before)) if now >= before => Some(Some(now - before)),
            (Some(_), Some(_)) => None,
            _ => Some(None),
        };
        if self.buckets.len() != before.buckets.len() {
            return None;
        }
        let buckets = self.buckets.iter().zip(&before.buckets).map(|(now, before)| {
            (now.0.total_cmp(&before.0).is_eq() && now.1 >= before.1).then_some((now.0, now.1 - before.1))
        });
        Some(Histogram {
            buckets: buckets.collect::<Option<_>>()?,
            // A sum may fall where observations are negative; then it says nothing.
            sum: minus(self.sum, before.sum).unwrap_or(None),
            count: minus(self.count, before.count)?,
        })
    }

    /// The mean observation. `None` where there was none.
    pub fn mean(&self) -> Option<f64> {
        let count = self.count.filter(|count| *count > 0.0)?;
        Some(self.sum? / count)
    }

    /// The value that this share of the observations does not exceed, straight lines drawn within a bucket, as
    /// Prometheus' `histogram_quantile` does. Past the last finite bound it is that bound: at least so much.
    /// `None` where nothing was observed.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let total = self.buckets.last().map(|(_, count)| *count).filter(|total| *total > 0.0)?;
        let rank = share * total;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in &self.buckets {
            if *count >= rank {
                if bound.is_infinite() {
                    return Some(low);
                }
                let inside = count - below;
                let part = if inside > 0.0 { (rank - below) / inside } else { 1.0 };
                return Some(low + (bound - low) * part);
            }
            (low, below) = (*bound, *count);
        }
        Some(low)
    }
}

/// Every parser of this file, for the fuzz targets.
#[cfg(fuzzing)]
pub fn fuzz(bytes: &[u8]) {
    static WANTED: &[&str] = &["a", "etcd_disk_wal_fsync_duration_seconds", "kubelet_evictions"];
    let mut reader = Reader::new(WANTED);
    let (head, tail) = bytes.split_at(bytes.len() / 2);
    let mut histogram = Histogram::default();
    for piece in [head, tail] {
        reader.feed(piece, &mut |sample| histogram.add(sample.part, sample.value));
    }
    crate::fuzz::done(reader.finish());
    crate::fuzz::done((histogram.quantile(0.5), histogram.quantile(0.99), histogram.mean()));
}

#[cfg(test)]
mod tests;
