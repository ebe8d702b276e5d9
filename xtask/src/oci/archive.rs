//! Tar archives in the `ustar` format: nothing in them depends on clock, user or machine.

use anyhow::{Result, ensure};

/// Size of a header, and what contents are filled up to.
const BLOCK: usize = 512;
/// Longest path in a header's first field.
const LONGEST: usize = 100;
/// Largest content that eleven octal digits can say.
const LARGEST: usize = 0o777_7777_7777;

/// One file or folder; it belongs to root.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    path: String,
    mode: u32,
    /// `None` for a folder.
    content: Option<Vec<u8>>,
}

impl Entry {
    /// A file that is read.
    pub(crate) fn file(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self::new(path, 0o644, Some(content.into()))
    }

    /// A file that is run.
    pub(crate) fn program(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self::new(path, 0o755, Some(content.into()))
    }

    /// A folder.
    pub(crate) fn folder(path: &str) -> Self {
        Self::new(&format!("{path}/"), 0o755, None)
    }

    fn new(path: &str, mode: u32, content: Option<Vec<u8>>) -> Self {
        Self {
            path: path.to_owned(),
            mode,
            content,
        }
    }

    fn header(&self) -> Result<[u8; BLOCK]> {
        let path = &self.path;
        let size = self.content.as_ref().map_or(0, Vec::len);
        ensure!(
            path.len() <= LONGEST,
            "the path {path} is longer than {LONGEST} bytes"
        );
        ensure!(size <= LARGEST, "{path} is larger than 8 GiB");
        let mut header = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, path.as_bytes());
        put(100, format!("{:07o}", self.mode).as_bytes());
        put(108, b"0000000\x000000000\0");
        put(124, format!("{size:011o}").as_bytes());
        put(136, b"00000000000\0");
        // The sum is made with blanks in its own place.
        put(148, b"        ");
        put(156, if self.content.is_some() { b"0" } else { b"5" });
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().copied().map(u32::from).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        Ok(header)
    }
}

/// The archive of `entries`, in their order.
pub(super) fn to_bytes(entries: &[Entry]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for entry in entries {
        bytes.extend(entry.header()?);
        bytes.extend(entry.content.iter().flatten());
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    // Two empty blocks are the end.
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn tar_reads_paths_modes_and_sizes() {
        let entries = [
            Entry::folder("bin"),
            Entry::program("bin/pause", vec![1; 513]),
            Entry::file("etc", "x"),
        ];
        let mut tar = Command::new("tar")
            .args(["-tv", "--numeric-owner", "--utc"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = tar.stdin.take().unwrap();
        stdin.write_all(&to_bytes(&entries).unwrap()).unwrap();
        drop(stdin);
        let listed = tar.wait_with_output().unwrap();
        assert!(listed.status.success());
        let listed = String::from_utf8(listed.stdout).unwrap();
        let words: Vec<Vec<&str>> = listed
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            words,
            [
                ["drwxr-xr-x", "0/0", "0", "1970-01-01", "00:00", "bin/"],
                [
                    "-rwxr-xr-x",
                    "0/0",
                    "513",
                    "1970-01-01",
                    "00:00",
                    "bin/pause"
                ],
                ["-rw-r--r--", "0/0", "1", "1970-01-01", "00:00", "etc"],
            ]
        );
    }

    #[test]
    fn a_path_that_does_not_fit_is_refused() {
        let error = to_bytes(&[Entry::file(&"a".repeat(101), "")]).unwrap_err();
        assert!(error.to_string().contains("longer than 100 bytes"));
    }
}
