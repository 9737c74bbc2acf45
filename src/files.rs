//! Writing files so that they appear whole or not at all.
//!
//! Every output of the library (plans, tensors, pictures, reports) goes through [`write_atomic`]: the bytes go
//! to a temporary file next to the target, are flushed to the disk, and the file takes the target's name by one
//! rename. Whatever goes wrong before that, the target keeps its old content.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Lets `content` write the file at `path`, which appears complete or stays as it was.
///
/// A symbolic link is followed. A path that exists and is not a regular file (`/dev/stdout`, a pipe) cannot be
/// renamed over and is written directly. An existing file keeps its permissions.
///
/// # Errors
/// [`Error::Io`] with `path` when the directory does not exist or cannot be written, when the disk is full, or
/// when `content` fails.
pub fn write_atomic(path: impl AsRef<Path>, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    write(path, content).map_err(|source| Error::Io { action: "write", path: path.to_path_buf(), source })
}

/// As [`write_atomic`], for a file that must not exist yet: of two that create it at once one succeeds.
///
/// # Errors
/// As [`write_atomic`]; [`Error::Io`] of kind [`io::ErrorKind::AlreadyExists`] when `path` exists, whatever it is.
pub fn create_atomic(path: impl AsRef<Path>, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    let create = || {
        let temporary = filled(path, content, None)?;
        temporary.persist_noclobber(path).map_err(|error| without_path(&error.error))
    };
    create().map(|_| ()).map_err(|source| Error::Io { action: "write", path: path.to_path_buf(), source })
}

fn write(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let permissions = match fs::metadata(&target) {
        Ok(metadata) if metadata.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
        Ok(metadata) if !metadata.is_file() => return write_through(&target, content),
        // Renaming over a file needs no right to write it; a file that was protected on purpose stays.
        Ok(metadata) if metadata.permissions().readonly() => return Err(io::ErrorKind::PermissionDenied.into()),
        Ok(metadata) => Some(metadata.permissions()),
        Err(_) => None,
    };
    let temporary = filled(&target, content, permissions)?;
    temporary.persist(&target).map_err(|error| without_path(&error.error))?;
    Ok(())
}

/// A temporary file beside the target with all of its content on the disk.
fn filled(
    target: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    permissions: Option<fs::Permissions>,
) -> io::Result<tempfile::NamedTempFile> {
    let directory = directory_of(target);
    let mut temporary = temporary_in(&directory, target).map_err(|error| without_path(&error))?;
    let mut buffer = BufWriter::with_capacity(1 << 16, temporary.as_file_mut());
    content(&mut buffer)?;
    buffer.flush()?;
    drop(buffer);
    if let Some(permissions) = permissions {
        temporary.as_file().set_permissions(permissions)?;
    }
    temporary.as_file().sync_all()?;
    Ok(temporary)
}

/// An error of the temporary file ends in the path of that file, which the user has never heard of.
fn without_path(error: &io::Error) -> io::Error {
    let text = error.to_string();
    let reason = text.split_once(" at path ").map_or(text.as_str(), |(reason, _)| reason);
    io::Error::new(error.kind(), reason.to_string())
}

fn write_through(target: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = BufWriter::new(File::options().write(true).open(target)?);
    content(&mut buffer)?;
    buffer.flush()
}

fn directory_of(target: &Path) -> PathBuf {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

fn temporary_in(directory: &Path, target: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(target.file_name().unwrap_or_default());
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".part");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // What the user's umask leaves of it, as for any file a program creates.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder.tempfile_in(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan");
        write_atomic(&path, |out| out.write_all(b"old")).unwrap();
        write_atomic(&path, |out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(directory.path()), ["plan"]);
    }

    #[test]
    fn creates_a_file_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan");
        create_atomic(&path, |out| out.write_all(b"first")).unwrap();
        let error = create_atomic(&path, |out| out.write_all(b"second")).unwrap_err();
        assert!(matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::AlreadyExists), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(directory.path()), ["plan"]);
    }

    #[test]
    fn a_failure_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan");
        write_atomic(&path, |out| out.write_all(b"old")).unwrap();
        let error = write_atomic(&path, |out| {
            out.write_all(&[0; 1 << 20])?;
            Err(io::ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert!(error.to_string().starts_with("cannot write `"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["plan"]);
    }

    #[test]
    fn a_panic_leaves_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan");
        let result = std::panic::catch_unwind(|| write_atomic(&path, |_| panic!("interrupted")));
        assert!(result.is_err());
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn missing_directories_and_directories_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("missing").join("plan");
        let text = write_atomic(&path, |_| Ok(())).unwrap_err().to_string();
        assert_eq!(text, format!("cannot write `{}`: No such file or directory (os error 2)", path.display()));
        let text = write_atomic(directory.path(), |_| Ok(())).unwrap_err().to_string();
        assert!(text.ends_with("is a directory"), "{text}");
    }

    #[cfg(unix)]
    #[test]
    fn protected_files_devices_and_links_are_respected() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("plan");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
        assert!(write_atomic(&path, |out| out.write_all(b"new")).is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write_atomic(&link, |out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        write_atomic("/dev/null", |out| out.write_all(b"gone")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_device_is_an_error() {
        let error = write_atomic("/dev/full", |out| out.write_all(&[0; 100])).unwrap_err();
        assert!(error.to_string().contains("No space left"), "{error}");
    }
}
