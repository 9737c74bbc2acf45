//! Compiled kernels on the disk, so that each is compiled once on a machine.
//!
//! The name of an entry is a hash of all that decides what is in it: source, options, compiler, architecture and driver. An entry
//! carries a hash of its content; one that is truncated, altered or of another version is not there. The cache is never needed:
//! where it cannot be read or written, kernels are compiled again.

use std::fs;
use std::path::{Path, PathBuf};

use etcetera::BaseStrategy;

use super::device::Version;
use super::nvrtc::{Nvrtc, Program};
use crate::env;
use crate::files::write_atomic;

/// First bytes of an entry.
const MAGIC: &[u8; 16] = b"flashomni cubin1";

/// Bytes of a hash.
const HASH: usize = blake3::OUT_LEN;

/// What marks a folder that backups leave out (see bford.info/cachedir).
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # Compiled GPU kernels of flashomni. They are made again when they are missing.\n";

/// A folder of compiled kernels.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// The name of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(String);

impl Key {
    /// That of a program, as a compiler makes it for the driver that will load it.
    #[must_use]
    pub fn of(program: &Program<'_>, compiler: Version, driver: Version) -> Self {
        let mut hash = blake3::Hasher::new();
        let options = Nvrtc::options(program);
        let versions = [compiler, driver].map(|version| version.to_string());
        let parts = [program.name, program.source].into_iter();
        for part in parts.chain(versions.iter().map(String::as_str)).chain(options.iter().map(String::as_str)) {
            // With its length, so that no two lists of parts are one text.
            hash.update(&(part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
        let stem = Path::new(program.name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Key(format!("{stem}-{}-{}", program.architecture, &hash.finalize().to_hex()[..32]))
    }
}

impl Cache {
    /// The user's cache: [`env::CACHE_DIR`], or `flashomni` in the platform's folder for such things.
    #[must_use]
    pub fn of_user() -> Self {
        let platform = || Some(etcetera::choose_base_strategy().ok()?.cache_dir().join("flashomni"));
        Cache { folder: env::cache_dir().or_else(platform) }
    }

    /// A cache in a folder, which need not exist.
    #[must_use]
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Cache { folder: Some(folder.into()) }
    }

    /// Where it is; `None` where there is no place for it.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The cubin of an entry, if there is a whole one.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let entry = fs::read(self.path(key)?).ok()?;
        let rest = entry.strip_prefix(MAGIC)?;
        let (hash, cubin) = rest.split_at_checked(HASH)?;
        (blake3::hash(cubin).as_bytes().as_slice() == hash).then(|| cubin.to_vec())
    }

    /// Keeps a cubin. Whether that works makes a difference of time only.
    pub fn put(&self, key: &Key, cubin: &[u8]) {
        let Some(path) = self.path(key).filter(|_| self.prepare()) else { return };
        let _ = write_atomic(path, |out| {
            out.write_all(MAGIC)?;
            out.write_all(blake3::hash(cubin).as_bytes())?;
            out.write_all(cubin)
        });
    }

    /// Writes the source of a kernel that did not compile, for its author to look at; where it was written.
    #[must_use]
    pub fn save_source(&self, key: &Key, source: &str) -> Option<PathBuf> {
        let name = format!("{}.cu", key.0);
        let here = self.folder.as_ref().filter(|_| self.prepare()).map(|folder| folder.join(&name));
        [here, Some(std::env::temp_dir().join(&name))]
            .into_iter()
            .flatten()
            .find(|path| write_atomic(path, |out| out.write_all(source.as_bytes())).is_ok())
    }

    fn path(&self, key: &Key) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{}.cubin", key.0)))
    }

    /// Makes the folder; whether it is there.
    fn prepare(&self) -> bool {
        let Some(folder) = &self.folder else { return false };
        if fs::create_dir_all(folder).is_err() {
            return false;
        }
        let tag = folder.join("CACHEDIR.TAG");
        if !tag.exists() {
            let _ = write_atomic(tag, |out| out.write_all(TAG.as_bytes()));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRIVER: Version = Version { major: 13, minor: 0 };

    fn key(source: &str, options: &[String], architecture: &str, driver: Version) -> Key {
        Key::of(&Program { name: "attention/some.cu", source, architecture, options }, DRIVER, driver)
    }

    #[test]
    fn entries_come_back_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("deep/cache"));
        let key = key("source", &[], "sm_90a", DRIVER);
        assert_eq!(cache.get(&key), None);
        cache.put(&key, b"cubin");
        assert_eq!(cache.get(&key).as_deref(), Some(&b"cubin"[..]));
        assert!(cache.folder().unwrap().join("CACHEDIR.TAG").exists());
        let path = cache.path(&key).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(cache.get(&key), None, "{length} bytes");
        }
        for byte in 0..whole.len() {
            let mut altered = whole.clone();
            altered[byte] ^= 1;
            fs::write(&path, &altered).unwrap();
            assert_eq!(cache.get(&key), None, "byte {byte}");
        }
        cache.put(&key, b"again");
        assert_eq!(cache.get(&key).as_deref(), Some(&b"again"[..]));
    }

    #[test]
    fn all_that_decides_is_in_the_key() {
        let options = ["-DA=1".to_owned(), "-DB=2".to_owned()];
        let keys = [
            key("source", &options, "sm_90a", DRIVER),
            key("sourc", &options, "sm_90a", DRIVER),
            key("source", &options[..1], "sm_90a", DRIVER),
            key("source", &["-DA=1-DB=2".to_owned()], "sm_90a", DRIVER),
            key("source", &options, "sm_80", DRIVER),
            key("source", &options, "sm_90a", Version { major: 13, minor: 1 }),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(key.0.starts_with("some-sm_"), "{key:?}");
            assert!(!keys[..index].contains(key), "{key:?}");
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_costs_nothing_but_time() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        for cache in [Cache::at(folder.path().join("file/cache")), Cache { folder: None }] {
            let key = key("source", &[], "sm_90a", DRIVER);
            cache.put(&key, b"cubin");
            assert_eq!(cache.get(&key), None);
        }
    }
}
