//! The hash that ties an archive to the sources it was built from.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::compile;
use crate::error::{Error, Result};
use crate::spec;

/// Raise it when this crate finishes or packs PTX in another way: every archive is stale then.
pub const RECIPE: u32 = 1;

/// SHA-256, in hexadecimal, of all that decides what the PTX is, except the compiler: the `.rs` files
/// and manifests of the crates, the compiler's flags, and [`RECIPE`].
///
/// Lock files do not count: the kernels depend on nothing but flashtile-abi. Line endings do not
/// count either, nor where the folders are: `crates` are pairs of a name and a folder.
pub fn sources_hash(crates: &[(&str, &Path)]) -> Result<String> {
    let mut hash = Sha256::new();
    let mut feed = |name: &str, content: &[u8]| {
        hash.update(name.as_bytes());
        hash.update([0]);
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    };
    feed("recipe", &RECIPE.to_le_bytes());
    for setting in compile::PROFILE {
        feed("profile", setting.as_bytes());
    }
    for arch in spec::arches() {
        feed(arch, compile::flags(arch).join(" ").as_bytes());
    }
    for (name, root) in crates {
        let mut files = Vec::new();
        collect(root, root, &mut files)?;
        files.sort();
        for (relative, path) in files {
            let content = fs::read(&path).map_err(Error::io(&path))?;
            feed(&format!("{name}/{relative}"), &unix_lines(&content));
        }
    }
    Ok(hex(&hash.finalize()))
}

/// SHA-256 in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Source files below `folder` with their names relative to `root`, `/` between the parts.
fn collect(root: &Path, folder: &Path, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(root, &path, files)?;
            }
        } else if name == "Cargo.toml" || name.ends_with(".rs") {
            let relative = path.strip_prefix(root).unwrap_or(&path);
            let parts: Vec<_> = relative.iter().map(|p| p.to_string_lossy()).collect();
            files.push((parts.join("/"), path.clone()));
        }
    }
    Ok(())
}

fn unix_lines(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len());
    for (index, byte) in content.iter().enumerate() {
        if *byte != b'\r' || content.get(index + 1) != Some(&b'\n') {
            out.push(*byte);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> std::io::Result<tempfile::TempDir> {
        let folder = tempfile::tempdir()?;
        for (name, content) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap_or(folder.path()))?;
            fs::write(path, content)?;
        }
        Ok(folder)
    }

    fn hash(files: &[(&str, &str)]) -> Result<String> {
        let folder = tree(files).map_err(Error::io("temporary"))?;
        sources_hash(&[("kernels", folder.path())])
    }

    #[test]
    fn the_hash_depends_on_sources_alone() -> Result<()> {
        let base = hash(&[("Cargo.toml", "a\n"), ("src/lib.rs", "b\nc\n")])?;
        assert_eq!(base.len(), 64);
        let same = [
            ("src/lib.rs", "b\r\nc\r\n"),
            ("Cargo.toml", "a\r\n"),
            ("Cargo.lock", "x"),
            ("target/x.rs", "x"),
            (".git/x.rs", "x"),
            ("README.md", "x"),
        ];
        assert_eq!(hash(&same)?, base);
        for other in [
            [("Cargo.toml", "a\n"), ("src/lib.rs", "b\nd\n")],
            [("Cargo.toml", "x\n"), ("src/lib.rs", "b\nc\n")],
            [("Cargo.toml", "a\n"), ("src/main.rs", "b\nc\n")],
        ] {
            assert_ne!(hash(&other)?, base);
        }
        assert_ne!(hash(&[("Cargo.toml", "a\n")])?, base);
        Ok(())
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        assert!(sources_hash(&[("kernels", Path::new("/nonexistent"))]).is_err());
    }
}
