//! The files in which the kernel shows itself, below a root that tests choose.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// `/`, or a directory that looks like it. Paths are relative to it: `proc/meminfo`.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The host's own.
    pub fn host() -> Self {
        Self("/".into())
    }

    /// Another, for tests.
    #[cfg(test)]
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The path of a file.
    pub fn path(&self, file: impl AsRef<Path>) -> PathBuf {
        self.0.join(file)
    }

    /// A file's text without the space around it; `None` if it cannot be read.
    pub fn text(&self, file: impl AsRef<Path>) -> Option<String> {
        fs::read_to_string(self.path(file)).ok().map(|text| text.trim().to_owned())
    }

    /// A file that holds one number, or the like.
    pub fn number<T: FromStr>(&self, file: impl AsRef<Path>) -> Option<T> {
        self.text(file)?.parse().ok()
    }

    /// A file that holds numbers.
    pub fn numbers(&self, file: impl AsRef<Path>) -> Option<Vec<u64>> {
        self.text(file)?.split_whitespace().map(|word| word.parse().ok()).collect()
    }

    /// The value of `Name: value` in a file of such lines, without its unit.
    pub fn field<T: FromStr>(&self, file: impl AsRef<Path>, name: &str) -> Option<T> {
        let text = self.text(file)?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.split_whitespace().next()?.parse().ok()
    }

    /// Names in a directory, sorted; empty if it cannot be read.
    pub fn names(&self, directory: impl AsRef<Path>) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(directory)) else { return Vec::new() };
        let mut names: Vec<_> =
            entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Numbers of the processes whose name is `name`.
    pub fn processes(&self, name: &str) -> Vec<u32> {
        let named = |pid: &u32| self.text(format!("proc/{pid}/comm")).is_some_and(|comm| comm == name);
        self.names("proc").iter().filter_map(|entry| entry.parse().ok()).filter(named).collect()
    }
}

/// A root with these files in it.
#[cfg(test)]
pub fn fixture(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let root = Root::at(directory.path());
    (directory, root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_what_they_hold() {
        let (_directory, root) = fixture(&[
            ("proc/sys/x", "17\n"),
            ("proc/sys/three", "1\t22\t333\n"),
            ("proc/meminfo", "MemTotal:  24684084 kB\nMemAvailable:    5 kB\n"),
            ("proc/7/comm", "irqbalance\n"),
            ("proc/8/comm", "irqbalancer\n"),
        ]);
        assert_eq!(root.number::<u32>("proc/sys/x"), Some(17));
        assert_eq!(root.number::<u32>("proc/sys/three"), None);
        assert_eq!(root.numbers("proc/sys/three"), Some(vec![1, 22, 333]));
        assert_eq!(root.field::<u64>("proc/meminfo", "MemAvailable"), Some(5));
        assert_eq!(root.field::<u64>("proc/meminfo", "Mem"), None);
        assert_eq!(root.names("proc/sys"), ["three", "x"]);
        assert!(root.names("none").is_empty());
        assert_eq!(root.processes("irqbalance"), [7]);
        assert!(Root::host().text("proc/self/comm").is_some());
    }
}
