//! Objects and files in folders. Each is written beside its place and then moved or linked to it, so it is there whole or
//! not at all. A file of a sink never replaces another.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use leat_runtime_core::row::Part;

use super::{failed, fatal};
use crate::engine::ports::{Call, Completed, Files, Objects, PortError};

/// Writes a file whole; it is durable when this returns.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let beside = path.with_extension(format!("tmp-{}", std::process::id()));
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_data()
    });
    // On a full disk half a file takes room that others wait for.
    written.and_then(|()| fs::rename(&beside, path)).inspect_err(|_| drop(fs::remove_file(&beside)))
}

/// Objects below a folder.
pub struct LocalObjects {
    root: PathBuf,
}

impl LocalObjects {
    /// Objects below `root`.
    pub fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }
}

impl Objects for LocalObjects {
    fn put<'a>(&'a self, name: &'a str, bytes: Bytes) -> Call<'a, ()> {
        let path = self.root.join(name);
        Box::pin(async move {
            let write = move || if path.exists() { Ok(()) } else { write_durably(&path, &bytes) };
            tokio::task::spawn_blocking(write)
                .await
                .map_err(|e| fatal("writing was stopped", e))?
                .map_err(|e| failed(&format!("cannot write {name}"), &e))
        })
    }

    fn get<'a>(&'a self, name: &'a str) -> Call<'a, Bytes> {
        Box::pin(async move { fs::read(self.root.join(name)).map(Bytes::from).map_err(|e| fatal(&format!("cannot read {name}"), e)) })
    }

    fn delete<'a>(&'a self, name: &'a str) -> Call<'a, ()> {
        Box::pin(async move {
            match fs::remove_file(self.root.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(fatal(&format!("cannot remove {name}"), e)),
                _ => Ok(()),
            }
        })
    }
}

/// Files of sinks below a folder; `s3://bucket/key` is `bucket/key` there.
pub struct LocalFiles {
    root: PathBuf,
    uploads: PathBuf,
    next: AtomicU64,
    session: String,
}

impl LocalFiles {
    /// Files below `root`, their parts in `uploads` until they are completed. `session` makes ids of uploads unique.
    pub fn new(root: &Path, uploads: &Path, session: &str) -> Self {
        Self { root: root.to_owned(), uploads: uploads.to_owned(), next: AtomicU64::new(0), session: session.to_owned() }
    }

    /// Where a file of a destination is.
    pub fn path(&self, destination: &str) -> PathBuf {
        self.root.join(destination.strip_prefix("s3://").unwrap_or(destination))
    }

    fn part_path(&self, upload: &str, number: u32) -> PathBuf {
        self.uploads.join(upload).join(format!("{number:05}"))
    }

    /// Writes the parts into one file; answers whether they are those that are named.
    fn join(&self, whole: &Path, upload: &str, parts: &[Part]) -> io::Result<bool> {
        let mut out = File::create(whole)?;
        for part in parts {
            let mut file = match File::open(self.part_path(upload, part.number)) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(e),
            };
            if io::copy(&mut file, &mut out)? != part.size {
                return Ok(false);
            }
        }
        out.sync_data()?;
        Ok(true)
    }

    fn finish(&self, destination: &str, upload: &str, parts: &[Part]) -> io::Result<Completed> {
        let target = self.path(destination);
        if target.exists() {
            drop(fs::remove_dir_all(self.uploads.join(upload)));
            return Ok(Completed::Done);
        }
        let whole = self.uploads.join(upload).join(format!("whole-{}", self.session));
        if !self.join(&whole, upload, parts).inspect_err(|_| drop(fs::remove_file(&whole)))? {
            return Ok(Completed::WrongPart);
        }
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        match fs::hard_link(&whole, &target) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        drop(fs::remove_dir_all(self.uploads.join(upload)));
        Ok(Completed::Done)
    }
}

impl Files for LocalFiles {
    fn smallest_part(&self) -> usize {
        0
    }

    fn create<'a>(&'a self, _destination: &'a str) -> Call<'a, String> {
        let id = format!("{}-{}", self.session, self.next.fetch_add(1, Ordering::Relaxed));
        Box::pin(async move {
            fs::create_dir_all(self.uploads.join(&id)).map_err(|e| failed("cannot begin an upload", &e))?;
            Ok(id)
        })
    }

    fn part<'a>(&'a self, destination: &'a str, upload: &'a str, number: u32, bytes: Bytes) -> Call<'a, Option<String>> {
        let (path, target) = (self.part_path(upload, number), self.path(destination));
        Box::pin(async move {
            if !self.uploads.join(upload).exists() {
                if target.exists() {
                    return Ok(None);
                }
                return Err(PortError::Fatal(format!("the upload {upload} is gone")));
            }
            let tag = format!("{:08x}", crc32fast::hash(&bytes));
            tokio::task::spawn_blocking(move || write_durably(&path, &bytes))
                .await
                .map_err(|e| fatal("writing was stopped", e))?
                .map_err(|e| failed("cannot write a part", &e))?;
            Ok(Some(tag))
        })
    }

    fn put<'a>(&'a self, destination: &'a str, bytes: Bytes) -> Call<'a, ()> {
        let target = self.path(destination);
        let write = move || if target.exists() { Ok(()) } else { write_durably(&target, &bytes) };
        Box::pin(async move {
            tokio::task::spawn_blocking(write)
                .await
                .map_err(|e| fatal("writing was stopped", e))?
                .map_err(|e| failed(&format!("cannot write {destination}"), &e))
        })
    }

    fn complete<'a>(&'a self, destination: &'a str, upload: &'a str, parts: &'a [Part]) -> Call<'a, Completed> {
        Box::pin(async move { self.finish(destination, upload, parts).map_err(|e| failed(&format!("cannot complete {destination}"), &e)) })
    }
}
