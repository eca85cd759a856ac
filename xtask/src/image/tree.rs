//! Files of a layer, in the order of their names; written as tar, or as a folder.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};

enum Node {
    Folder,
    File(Vec<u8>),
}

/// Files with their permissions; all belong to root.
#[derive(Default)]
pub struct Tree {
    nodes: BTreeMap<String, (u32, Node)>,
}

impl Tree {
    /// Adds a file. Paths are relative to the root.
    pub fn file(&mut self, path: &str, bytes: Vec<u8>, mode: u32) {
        self.nodes.insert(path.to_owned(), (mode, Node::File(bytes)));
    }

    /// Adds a folder with permissions of its own.
    pub fn folder(&mut self, path: &str, mode: u32) {
        self.nodes.insert(path.to_owned(), (mode, Node::Folder));
    }

    /// The layer as tar: the same bytes for the same files.
    pub fn tar(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let parents: BTreeSet<String> = self.nodes.keys().flat_map(|path| parents(path)).collect();
        let mut entries: BTreeMap<String, (u32, &[u8], tar::EntryType)> =
            parents.into_iter().map(|path| (path, (0o755, &[][..], tar::EntryType::Directory))).collect();
        for (path, (mode, node)) in &self.nodes {
            match node {
                Node::Folder => entries.insert(format!("{path}/"), (*mode, &[], tar::EntryType::Directory)),
                Node::File(bytes) => entries.insert(path.clone(), (*mode, bytes, tar::EntryType::Regular)),
            };
        }
        for (path, (mode, bytes, kind)) in entries {
            append(&mut tar, &path, mode, bytes, kind)?;
        }
        Ok(tar.into_inner()?)
    }

    /// Writes the files below a folder.
    pub fn unpack(&self, root: &Path) -> Result<()> {
        for (path, (mode, node)) in &self.nodes {
            let at = root.join(path);
            let folder = if matches!(node, Node::Folder) { Some(at.as_path()) } else { at.parent() };
            std::fs::create_dir_all(folder.unwrap_or(root)).with_context(|| format!("cannot create {}", at.display()))?;
            if let Node::File(bytes) = node {
                std::fs::write(&at, bytes).with_context(|| format!("cannot write {}", at.display()))?;
            }
            std::fs::set_permissions(&at, std::fs::Permissions::from_mode(*mode))?;
        }
        Ok(())
    }
}

/// The folders above a path, as tar names them.
fn parents(path: &str) -> Vec<String> {
    path.match_indices('/').map(|(at, _)| format!("{}/", &path[..at])).collect()
}

/// Adds an entry that tells nothing but name, permissions and bytes.
pub fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, bytes: &[u8], kind: tar::EntryType) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, path, bytes).with_context(|| format!("cannot add {path}"))
}
