//! An image as one file: OCI image layout 1.1 in a tar (<https://github.com/opencontainers/image-spec>), with the
//! `manifest.json` beside it that older engines load.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::tree::{self, Tree};

/// What an image says of itself.
pub struct About<'a> {
    /// Name and tag.
    pub reference: &'a str,
    /// Name.
    pub title: &'a str,
    /// Path of the program that it runs.
    pub program: &'a str,
    /// One line.
    pub description: &'a str,
    /// User and group that the program runs as.
    pub user: u32,
    /// How much time goes into small layers.
    pub compression: Compression,
}

/// SHA-256 as hex.
pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// Writes the archive; answers the manifest's digest, and the bytes of the layers as they are pulled and unpacked.
pub fn write(file: &Path, about: &About<'_>, layers: &[Tree]) -> Result<(String, (u64, u64))> {
    let mut blobs: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut add = |kind: &str, bytes: Vec<u8>| {
        let (name, size) = (digest(&bytes), bytes.len());
        blobs.insert(name.clone(), bytes);
        (json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{name}"), "size": size}), name)
    };
    let (mut descriptors, mut unpacked, mut names) = (Vec::new(), Vec::new(), Vec::new());
    let mut sizes = (0, 0);
    for layer in layers {
        let bytes = layer.tar()?;
        unpacked.push(format!("sha256:{}", digest(&bytes)));
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), about.compression);
        gzip.write_all(&bytes)?;
        let packed = gzip.finish()?;
        sizes = (sizes.0 + packed.len() as u64, sizes.1 + bytes.len() as u64);
        let (descriptor, name) = add("layer.v1.tar+gzip", packed);
        descriptors.push(descriptor);
        names.push(format!("blobs/sha256/{name}"));
    }
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let user = format!("{0}:{0}", about.user);
    let labels = json!({
        "org.opencontainers.image.title": about.title,
        "org.opencontainers.image.description": about.description,
        "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
        "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
        "org.opencontainers.image.vendor": "Leat",
    });
    let config = json!({
        "architecture": architecture,
        "os": "linux",
        "config": {"User": user, "Entrypoint": [about.program], "WorkingDir": "/", "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": unpacked},
        "history": layers.iter().map(|_| json!({"created_by": "cargo xtask image"})).collect::<Vec<_>>(),
    });
    let (config, config_name) = add("config.v1+json", config.to_string().into_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": descriptors,
        "annotations": labels,
    });
    let (mut manifest, manifest_name) = add("manifest.v1+json", manifest.to_string().into_bytes());
    let tag = about.reference.rsplit(':').next().unwrap_or_default();
    // containerd and Docker take the name from here; a name without a registry is Docker Hub's.
    let full = if about.reference.contains('/') { about.reference.to_owned() } else { format!("docker.io/library/{}", about.reference) };
    manifest["annotations"] = json!({"io.containerd.image.name": full, "org.opencontainers.image.ref.name": tag});
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest]});
    let docker = json!([{"Config": format!("blobs/sha256/{config_name}"), "RepoTags": [about.reference], "Layers": names}]);

    let mut tar = tar::Builder::new(Vec::new());
    let mut file_of = |name: &str, bytes: &[u8]| tree::append(&mut tar, name, 0o644, bytes, tar::EntryType::Regular);
    for (name, bytes) in &blobs {
        file_of(&format!("blobs/sha256/{name}"), bytes)?;
    }
    let text = |value: &Value| value.to_string().into_bytes();
    file_of("index.json", &text(&index))?;
    file_of("manifest.json", &text(&docker))?;
    file_of("oci-layout", &text(&json!({"imageLayoutVersion": "1.0.0"})))?;
    std::fs::write(file, tar.into_inner()?).with_context(|| format!("cannot write {}", file.display()))?;
    Ok((format!("sha256:{manifest_name}"), sizes))
}
