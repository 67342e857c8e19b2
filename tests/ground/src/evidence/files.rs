//! The folder of one run, written and read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Evidence, Served, Truth, VERSION, Way};

const FORMAT: &str = "nodewhy-evidence";
const LEVEL: i32 = 19;
/// 64 MiB: a whole minute of states, and what `zstd -dc` reads without being told.
const WINDOW_LOG: u32 = 26;
/// No honest file is longer once it is unpacked.
const LONGEST_BYTES: u64 = 1 << 30;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: String,
    version: u32,
    records: usize,
}

/// Where the repository keeps evidence.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("evidence")
}

/// Every run that is kept under `root`, by the fault's name.
///
/// # Errors
/// A folder is no evidence: which, and why.
pub fn all(root: &Path) -> anyhow::Result<BTreeMap<String, Evidence>> {
    let mut all = BTreeMap::new();
    for name in entries(root)? {
        let path = root.join(&name);
        if path.is_dir() {
            let evidence = Evidence::read(&path)?;
            ensure!(
                evidence.truth.fault == name,
                "{}: the truth is about {}; name the folder so",
                path.display(),
                evidence.truth.fault
            );
            all.insert(name, evidence);
        }
    }
    Ok(all)
}

impl Evidence {
    /// Writes it to `ROOT/FAULT/`, in place of what is there. The folder is made whole beside it first.
    ///
    /// # Errors
    /// A file can't be written: which, and why.
    pub fn write(&self, root: &Path) -> anyhow::Result<PathBuf> {
        let (path, new) = (root.join(&self.truth.fault), root.join(format!(".{}.new", self.truth.fault)));
        remove(&new)?;
        fs::create_dir_all(&new).with_context(|| format!("make {}", new.display()))?;
        let truth = new.join("truth.json");
        fs::write(&truth, serde_json::to_string_pretty(&self.truth)? + "\n")
            .with_context(|| format!("write {}", truth.display()))?;
        for (way, served) in &self.agents {
            served.write(&new.join(way.folder()))?;
        }
        if let Some(kmsg) = &self.kmsg {
            write(&new.join("kmsg.zst"), kmsg)?;
        }
        remove(&path)?;
        fs::rename(&new, &path).with_context(|| format!("rename {} to {}", new.display(), path.display()))?;
        Ok(path)
    }

    /// Reads the folder of one run.
    ///
    /// # Errors
    /// A file is missing, damaged, ends too early, is of another version, or is one that this format does not have:
    /// which, and why.
    pub fn read(path: &Path) -> anyhow::Result<Evidence> {
        let truth_path = path.join("truth.json");
        let text =
            fs::read_to_string(&truth_path).with_context(|| format!("read {}", truth_path.display()))?;
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        // The version first: another's fields would only be called unknown.
        let Versioned { version } =
            serde_json::from_str(&text).with_context(|| format!("read {}", truth_path.display()))?;
        known(version, &truth_path)?;
        let truth: Truth =
            serde_json::from_str(&text).with_context(|| format!("read {}", truth_path.display()))?;
        let (mut agents, mut kmsg) = (BTreeMap::new(), None);
        for name in entries(path)? {
            let entry = path.join(&name);
            if let Some(way) = Way::ALL.into_iter().find(|way| way.folder() == name) {
                agents.insert(way, Served::read(&entry)?);
            } else if name == "kmsg.zst" {
                kmsg = Some(read(&entry)?);
            } else {
                ensure!(name == "truth.json", "{} is no file of version {VERSION}", entry.display());
            }
        }
        ensure!(!agents.is_empty(), "{} holds the words of no agent", path.display());
        Ok(Evidence { truth, agents, kmsg })
    }
}

impl Served {
    fn write(&self, path: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
        write(&path.join("node.zst"), &self.node)?;
        write(&path.join("state.zst"), &self.state)?;
        write(&path.join("metrics.zst"), &self.metrics)?;
        write(&path.join("findings.zst"), &self.findings)?;
        write(&path.join("readyz.zst"), &self.readyz)?;
        write(&path.join("events.zst"), &self.events)
    }

    fn read(path: &Path) -> anyhow::Result<Served> {
        let served = Served {
            node: read(&path.join("node.zst"))?,
            state: read(&path.join("state.zst"))?,
            metrics: read(&path.join("metrics.zst"))?,
            findings: read(&path.join("findings.zst"))?,
            readyz: read(&path.join("readyz.zst"))?,
            events: read(&path.join("events.zst"))?,
        };
        let known = ["node", "state", "metrics", "findings", "readyz", "events"];
        for name in entries(path)? {
            let is_known = name.strip_suffix(".zst").is_some_and(|name| known.contains(&name));
            ensure!(is_known, "{} is no file of version {VERSION}", path.join(name).display());
        }
        Ok(served)
    }
}

fn write<T: Serialize>(path: &Path, records: &[T]) -> anyhow::Result<()> {
    let all = || -> anyhow::Result<()> {
        let mut encoder = zstd::Encoder::new(File::create(path)?, LEVEL)?;
        encoder.include_checksum(true)?;
        encoder.long_distance_matching(true)?;
        encoder.window_log(WINDOW_LOG)?;
        let header = Header { format: FORMAT.to_owned(), version: VERSION, records: records.len() };
        writeln!(encoder, "{}", serde_json::to_string(&header)?)?;
        for record in records {
            writeln!(encoder, "{}", serde_json::to_string(record)?)?;
        }
        encoder.finish()?;
        Ok(())
    };
    all().with_context(|| format!("write {}", path.display()))
}

fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Vec<T>> {
    let all = || -> anyhow::Result<Vec<T>> {
        let mut decoder = zstd::Decoder::new(File::open(path)?)?;
        decoder.window_log_max(WINDOW_LOG)?;
        let mut lines = BufReader::new(decoder.take(LONGEST_BYTES)).lines();
        let first = lines.next().context("it is empty")??;
        let header: Header = serde_json::from_str(&first).context("its first line is no header")?;
        ensure!(header.format == FORMAT, "its header names the format {:?}", header.format);
        known(header.version, path)?;
        let mut records = Vec::new();
        for (number, line) in lines.enumerate() {
            let record = serde_json::from_str(&line?).with_context(|| format!("record {}", number + 1))?;
            records.push(record);
        }
        let (found, told) = (records.len(), header.records);
        ensure!(found == told, "it holds {found} records, and its header says {told}");
        Ok(records)
    };
    all().with_context(|| format!("read {}: record this fault again, or restore the file", path.display()))
}

fn known(version: u32, path: &Path) -> anyhow::Result<()> {
    if version != VERSION {
        bail!("{} is of version {version}; this program reads version {VERSION} alone", path.display());
    }
    Ok(())
}

/// The names in a folder, in order.
fn entries(path: &Path) -> anyhow::Result<BTreeSet<String>> {
    let list = || -> anyhow::Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(path)? {
            let name = entry?.file_name();
            let name = name.into_string().map_err(|name| anyhow::anyhow!("{name:?} is no UTF-8"))?;
            names.insert(name);
        }
        Ok(names)
    };
    list().with_context(|| format!("list {}", path.display()))
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
