//! Packs files into an OCI image archive: the node has no registry, so its images are imported
//! (`ctr --namespace k8s.io images import`). The same files give the same bytes.
//!
//! The archive is a tar of an OCI image layout (image-spec 1.0): `oci-layout`, `index.json`, and under `blobs/sha256` the
//! manifest, the configuration and one layer, each named by its digest.

use std::io::{self, Write};

use serde_json::json;
use sha2::{Digest, Sha256};

/// What is in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A folder, with its mode.
    Folder(String, u32),
    /// A file, with its mode and bytes.
    File(String, u32, Vec<u8>),
    /// A symbolic link, and to what.
    Link(String, String),
}

/// What the image's containers run where nothing else is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Program and arguments.
    pub entrypoint: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
}

/// Writes the archive of an image of this name (`localhost/busybox:1`). Paths are relative to the image's root; a
/// folder comes before what is in it.
///
/// # Errors
/// A path that a tar can't hold, or the writer's own.
pub fn pack(archive: impl Write, name: &str, entries: &[Entry], config: &Config) -> io::Result<()> {
    let layer = layer(entries)?;
    let config = serde_json::to_vec(&json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": config.entrypoint, "Env": config.env},
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)],
    }))?;
    let mut described = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    // containerd takes the name from its own annotation; other tools from the layout's.
    described["annotations"] =
        json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name});
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [described]}))?;
    let mut tar = tar::Builder::new(archive);
    append(
        &mut tar,
        &Entry::File("oci-layout".to_owned(), 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
    )?;
    append(&mut tar, &Entry::File("index.json".to_owned(), 0o644, index))?;
    for folder in ["blobs", "blobs/sha256"] {
        append(&mut tar, &Entry::Folder(folder.to_owned(), 0o755))?;
    }
    for blob in [manifest, config, layer] {
        append(&mut tar, &Entry::File(digest(&blob).replace("sha256:", "blobs/sha256/"), 0o644, blob))?;
    }
    tar.into_inner()?.flush()
}

fn layer(entries: &[Entry]) -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    entries.iter().try_for_each(|entry| append(&mut tar, entry))?;
    tar.into_inner()
}

/// Owned by root, made in 1970: nothing of this machine or of today is in it.
fn append(tar: &mut tar::Builder<impl Write>, entry: &Entry) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
    match entry {
        Entry::Folder(path, mode) => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(*mode);
            tar.append_data(&mut header, format!("{path}/"), io::empty())
        }
        Entry::File(path, mode, bytes) => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_mode(*mode);
            header.set_size(u64::try_from(bytes.len()).map_err(io::Error::other)?);
            tar.append_data(&mut header, path, bytes.as_slice())
        }
        Entry::Link(path, to) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            tar.append_link(&mut header, path, to)
        }
    }
}

fn descriptor(media_type: &str, blob: &[u8]) -> serde_json::Value {
    json!({"mediaType": media_type, "digest": digest(blob), "size": blob.len()})
}

fn digest(blob: &[u8]) -> String {
    let digest = Sha256::digest(blob);
    digest.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::Read;

    use super::*;

    fn packed() -> Vec<u8> {
        let entries = [
            Entry::Folder("bin".to_owned(), 0o755),
            Entry::File("bin/busybox".to_owned(), 0o755, vec![0x7f; 10_000]),
            Entry::Link("bin/sh".to_owned(), "busybox".to_owned()),
        ];
        let config = Config { entrypoint: vec!["/bin/sh".to_owned()], env: vec!["PATH=/bin".to_owned()] };
        let mut archive = Vec::new();
        pack(&mut archive, "localhost/busybox:1", &entries, &config).unwrap();
        archive
    }

    fn unpacked(archive: &[u8]) -> HashMap<String, Vec<u8>> {
        let mut files = HashMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(path, bytes);
        }
        files
    }

    #[test]
    fn what_was_packed_is_found_by_its_digests() {
        let files = unpacked(&packed());
        let blob = |descriptor: &serde_json::Value| -> Vec<u8> {
            let digest = descriptor["digest"].as_str().unwrap();
            let bytes = &files[&digest.replace("sha256:", "blobs/sha256/")];
            assert_eq!(descriptor["size"].as_u64().unwrap(), u64::try_from(bytes.len()).unwrap());
            assert_eq!(super::digest(bytes), digest);
            bytes.clone()
        };
        let index: serde_json::Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "localhost/busybox:1");
        let manifest: serde_json::Value = serde_json::from_slice(&blob(&index["manifests"][0])).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/bin/sh"]));
        let layer = blob(&manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], super::digest(&layer));
        assert_eq!(unpacked(&layer)["bin/busybox"], vec![0x7f; 10_000]);
        // The digest of nothing, as everybody knows it.
        let nothing = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(super::digest(b""), nothing);
    }

    #[test]
    fn it_is_the_same_again() {
        assert!(packed() == packed());
    }
}
