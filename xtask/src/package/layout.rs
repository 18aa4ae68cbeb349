//! An OCI image layout (OCI image specification 1.1), written directly.
//!
//! In go files; out comes a folder of blobs named by their digests, and the same as one tar file, entries in a fixed order: the same
//! files give the same digests.

use super::archive::{Entry, gzip, tar};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};

/// A layout that is being written.
pub(super) struct Layout {
    folder: PathBuf,
    manifests: Vec<Value>,
}

/// The time of everything.
const EPOCH: &str = "1970-01-01T00:00:00Z";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

impl Layout {
    /// An empty one, in place of what was in the folder.
    pub(super) fn new(folder: &Path) -> Result<Self> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        fs::create_dir_all(folder.join("blobs/sha256"))?;
        fs::write(folder.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
        Ok(Self { folder: folder.into(), manifests: Vec::new() })
    }

    /// Adds an image of one layer for an architecture; returns its digest. The first file is what it runs.
    pub(super) fn add(&mut self, arch: &str, entries: &[Entry]) -> Result<String> {
        let layer = tar(entries)?;
        let program = &entries.first().context("an image without files")?.path;
        let config = json!({
            "architecture": arch,
            "os": "linux",
            "created": EPOCH,
            "config": {"Entrypoint": [format!("/{program}")], "Cmd": ["run"], "User": "0", "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
            "history": [{"created": EPOCH, "created_by": "cargo xtask image"}],
        });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.blob(CONFIG, config.to_string().as_bytes())?,
            "layers": [self.blob(LAYER, &gzip(&layer)?)?],
        });
        let mut described = self.blob(MANIFEST, manifest.to_string().as_bytes())?;
        described["platform"] = json!({"architecture": arch, "os": "linux"});
        let digest = described["digest"].as_str().unwrap_or_default().to_string();
        self.manifests.push(described);
        Ok(digest)
    }

    /// Writes the index, and all of it as one file; returns the digest of the image, by which a registry will know it.
    pub(super) fn finish(self, version: &str, archive: &Path) -> Result<String> {
        let index = json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": self.manifests,
            "annotations": {
                "org.opencontainers.image.title": "calico-packet-accountant",
                "org.opencontainers.image.version": version,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        });
        let index = index.to_string();
        fs::write(self.folder.join("index.json"), &index)?;
        let mut blobs: Vec<_> = fs::read_dir(self.folder.join("blobs/sha256"))?
            .map(|entry| Ok(format!("blobs/sha256/{}", entry?.file_name().to_string_lossy())))
            .collect::<Result<_>>()?;
        blobs.extend(["index.json".into(), "oci-layout".into()]);
        blobs.sort();
        let entry = |path: &String| Ok(Entry::new(path, 0o644, fs::read(self.folder.join(path))?));
        let entries = blobs.iter().map(entry).collect::<Result<Vec<_>>>()?;
        fs::write(archive, tar(&entries)?)?;
        Ok(digest(index.as_bytes()))
    }

    /// Stores a blob, and describes it.
    fn blob(&self, media_type: &str, content: &[u8]) -> Result<Value> {
        let digest = digest(content);
        fs::write(self.folder.join("blobs").join(digest.replace(':', "/")), content)?;
        Ok(json!({"mediaType": media_type, "digest": digest, "size": content.len()}))
    }
}

fn digest(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn made(folder: &Path) -> String {
        let entries = [Entry::new("accountant", 0o755, "program"), Entry::new("licenses.txt", 0o644, "text")];
        let mut layout = Layout::new(&folder.join("image")).unwrap();
        layout.add("amd64", &entries).unwrap();
        layout.add("arm64", &entries).unwrap();
        layout.finish("1.2.3", &folder.join("image.tar")).unwrap()
    }

    #[test]
    fn the_same_files_are_the_same_image() {
        let [one, two] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        assert_eq!(made(one.path()), made(two.path()));
        // Also where there was another one before.
        assert_eq!(made(one.path()), made(two.path()));
        let archive = |folder: &Path| fs::read(folder.join("image.tar")).unwrap();
        assert_eq!(archive(one.path()), archive(two.path()));
    }

    /// Follows every digest from the index on: each blob is what its name says, and the layer what the configuration says.
    #[test]
    fn digests_are_of_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        let of_index = made(folder.path());
        let index = fs::read(image.join("index.json")).unwrap();
        assert_eq!(digest(&index), of_index);
        let read = |described: &Value| {
            let name = described["digest"].as_str().unwrap();
            let blob = fs::read(image.join("blobs").join(name.replace(':', "/"))).unwrap();
            assert_eq!(
                (digest(&blob), blob.len() as u64),
                (name.into(), described["size"].as_u64().unwrap())
            );
            blob
        };
        let json = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).unwrap() };
        for (described, arch) in json(&index)["manifests"].as_array().unwrap().iter().zip(["amd64", "arm64"])
        {
            assert_eq!(described["platform"]["architecture"], arch);
            let manifest = json(&read(described));
            let config = json(&read(&manifest["config"]));
            assert_eq!(config["config"]["Entrypoint"], json!(["/accountant"]));
            let mut layer = Vec::new();
            flate2::read::GzDecoder::new(read(&manifest["layers"][0]).as_slice())
                .read_to_end(&mut layer)
                .unwrap();
            assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
            let mut unpacked = tar::Archive::new(layer.as_slice());
            let entries = unpacked.entries().unwrap().map(|entry| {
                let entry = entry.unwrap();
                (entry.path().unwrap().display().to_string(), entry.header().mode().unwrap())
            });
            let wanted = [("accountant".to_string(), 0o755), ("licenses.txt".into(), 0o644)];
            assert_eq!(entries.collect::<Vec<_>>(), wanted);
        }
    }
}
