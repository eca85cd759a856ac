//! `cargo xtask image`: the images of the operator and the worker as OCI archives, written without a container engine.
//!
//! An image is two layers over nothing: what a program of glibc needs (its loader and libraries, certificates of
//! authorities, one user), and the program with its bill of materials. No shell, no package manager; it runs as a user
//! that is not root and needs no writable file but `/tmp`. The same input gives the same digest: names are sorted, times
//! are zero, and a release does not say where or when it was built. Input are the sources, the toolchain, and the system's
//! libraries and certificates, which the image holds too. The `Dockerfile` uses `--root`, so the files are the same.

mod archive;
mod materials;
mod tree;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use flate2::Compression;

pub use tree::Tree;

/// The user that programs run as: the one that distroless images call nonroot.
const USER: u32 = 65_532;

/// An image.
struct Image {
    /// Name of the image and of its program.
    name: &'static str,
    /// Package of the program.
    package: &'static str,
    /// One line about it.
    description: &'static str,
}

const IMAGES: [Image; 2] = [
    Image { name: "leat-operator", package: "leat-operator", description: "Reconciles the StreamingPipelines of a cluster" },
    Image { name: "leat-worker", package: "leat-runtime", description: "Runs a pipeline's job" },
];

/// What is asked for.
pub struct Options {
    /// Profile of cargo that the programs are built with.
    pub profile: String,
    /// Folder for the archives; default: `images` beside the programs.
    pub output: Option<PathBuf>,
    /// Only this image, as a folder of files: what a `Dockerfile` copies.
    pub root: Option<(String, PathBuf)>,
}

/// An archive that was written.
pub struct Written {
    /// Name and tag.
    pub reference: String,
    /// The archive.
    pub file: PathBuf,
    /// Digest of its manifest.
    pub digest: String,
    /// Bytes as it is pulled, and unpacked.
    pub sizes: (u64, u64),
}

/// Builds the programs and writes the images.
pub fn write(options: &Options) -> Result<Vec<Written>> {
    if !cfg!(target_os = "linux") {
        bail!("images hold this system's programs, and only Linux's run in pods: use the Dockerfiles here");
    }
    if let Some((name, _)) = &options.root
        && !IMAGES.iter().any(|i| i.name == name)
    {
        bail!("there is no image `{name}`; there are {}", IMAGES.map(|i| i.name).join(", "));
    }
    let programs = build(&options.profile)?;
    let asked = |image: &&Image| options.root.as_ref().is_none_or(|(name, _)| image.name == name);
    let mut written = Vec::new();
    for image in IMAGES.iter().filter(asked) {
        let program = programs.join(image.name);
        let layers = layers(image, &program)?;
        if let Some((_, folder)) = &options.root {
            layers.iter().try_for_each(|l| l.unpack(folder))?;
            continue;
        }
        let folder = options.output.clone().map_or_else(|| folder(&options.profile), Ok)?;
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let reference = format!("{}:{}", image.name, env!("CARGO_PKG_VERSION"));
        let file = folder.join(format!("{}.tar", image.name));
        let program = format!("/usr/bin/{}", image.name);
        // What only a test pulls is packed quickly.
        let compression = if options.profile == "dev" { Compression::fast() } else { Compression::default() };
        let (title, description) = (image.name, image.description);
        let about = archive::About { reference: &reference, title, program: &program, description, user: USER, compression };
        let (digest, sizes) = archive::write(&file, &about, &layers)?;
        written.push(Written { reference, file, digest, sizes });
    }
    Ok(written)
}

/// Writes the image that holds the namespaces of a pod on our own node.
pub fn pause(file: &Path, reference: &str, files: &Tree) -> Result<()> {
    let (description, compression) = ("Holds a pod's namespaces", Compression::fast());
    let about = archive::About { reference, title: "pause", program: "/pause", description, user: USER, compression };
    archive::write(file, &about, std::slice::from_ref(files)).map(drop)
}

/// Builds what is released; answers the folder of the programs.
fn build(profile: &str) -> Result<PathBuf> {
    let mut command = crate::cargo();
    command.args(["build", "--quiet", "--locked", "--profile", profile]);
    // The development profile's programs are those that the tests have, built by the same command.
    if profile != "dev" {
        command.args(IMAGES.iter().flat_map(|i| ["--package", i.package]));
        command.env("CARGO_ENCODED_RUSTFLAGS", nowhere(&programs(profile)?)?.join("\u{1f}"));
        command.env_remove("RUSTFLAGS");
    }
    if !command.status().context("cannot start cargo")?.success() {
        bail!("the programs could not be built");
    }
    programs(profile)
}

/// Flags by which programs do not say where they were built: neither where cargo keeps sources, nor the repository, nor the
/// folder of what is built.
fn nowhere(programs: &Path) -> Result<Vec<String>> {
    let given = std::env::var("RUSTFLAGS").unwrap_or_default();
    let mut flags: Vec<String> = given.split_whitespace().map(str::to_owned).collect();
    let home = match (std::env::var_os("CARGO_HOME"), std::env::var_os("HOME")) {
        (Some(home), _) => PathBuf::from(home),
        (None, Some(home)) => Path::new(&home).join(".cargo"),
        (None, None) => bail!("neither CARGO_HOME nor HOME is set"),
    };
    let repository = std::fs::canonicalize(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))?;
    // The last that fits counts: the folder of what is built is most often below the repository.
    let target = programs.parent().unwrap_or(programs);
    for (from, to) in [(home.as_path(), "/cargo"), (&repository, "/leat"), (target, "/target")] {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    }
    Ok(flags)
}

/// Where cargo puts the programs of a profile.
pub fn programs(profile: &str) -> Result<PathBuf> {
    let output = crate::cargo().args(["metadata", "--format-version=1", "--no-deps", "--offline"]).output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata gave no JSON")?;
    let target = metadata["target_directory"].as_str().context("cargo metadata names no target folder")?;
    Ok(Path::new(target).join(if profile == "dev" { "debug" } else { profile }))
}

/// Where the images of a profile are written to, unless somebody says otherwise.
pub fn folder(profile: &str) -> Result<PathBuf> {
    Ok(programs(profile)?.join("images"))
}

fn layers(image: &Image, program: &Path) -> Result<[Tree; 2]> {
    let mut base = Tree::default();
    let mut libraries = Vec::new();
    for (path, file) in linked(program)? {
        base.file(&path, read(&file)?, 0o755);
        libraries.push(file);
    }
    let certificates = Path::new("/etc/ssl/certs/ca-certificates.crt");
    if !certificates.exists() {
        bail!("{} is missing: install the package ca-certificates", certificates.display());
    }
    base.file("etc/ssl/certs/ca-certificates.crt", read(certificates)?, 0o644);
    libraries.push(certificates.to_owned());
    base.file("etc/passwd", format!("leat:x:{USER}:{USER}:leat:/:/sbin/nologin\n").into_bytes(), 0o644);
    base.file("etc/group", format!("leat:x:{USER}:\n").into_bytes(), 0o644);
    base.file("etc/nsswitch.conf", b"hosts: files dns\n".to_vec(), 0o644);
    base.folder("tmp", 0o1777);

    let mut top = Tree::default();
    top.file(&format!("usr/bin/{}", image.name), stripped(program)?, 0o755);
    let bill = materials::bill(image.name, image.package, &libraries)?;
    top.file(&format!("usr/share/sbom/{}.cdx.json", image.name), bill, 0o644);
    Ok([base, top])
}

fn read(file: &Path) -> Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

/// The loader and the libraries of a program: where it looks for each, and the file that is there.
fn linked(program: &Path) -> Result<Vec<(String, PathBuf)>> {
    let output = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found = Vec::new();
    for line in text.lines() {
        // `libm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`, `linux-vdso.so.1 (0x…)`.
        let path = line.split("=>").last().unwrap_or_default().trim().split(' ').next().unwrap_or_default();
        if line.contains("not found") {
            bail!("{} needs a library that is not there: {}", program.display(), line.trim());
        }
        if path.starts_with('/') {
            found.push((path.trim_start_matches('/').to_owned(), PathBuf::from(path)));
        }
    }
    if found.is_empty() {
        bail!("ldd says nothing about {}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(found)
}

/// A program without its symbols; releases have none anyway.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let file = program.with_extension("stripped");
    let done = Command::new("strip").arg("-o").arg(&file).arg(program).status().context("cannot start strip (binutils)")?;
    if !done.success() {
        bail!("strip failed on {}", program.display());
    }
    let bytes = read(&file)?;
    std::fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    Ok(bytes)
}
