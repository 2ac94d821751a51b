//! A disk that notes every operation, can fail any of them or be slow, and forgets as a power cut does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use super::super::disk::{Disk, Kernel};

/// What the end of a file of room is compared with.
const ZEROS: [u8; 4096] = [0; 4096];

/// Where all is really done; what is synced does not matter here.
const KERNEL: Kernel = Kernel { is_durable: false };

/// One operation, as it was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operation {
    Create(PathBuf),
    Write(PathBuf, u64, Vec<u8>),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    MakeFolders(PathBuf),
    RemoveFolder(PathBuf),
    SyncFolder(PathBuf),
}

impl Operation {
    fn path(&self) -> &Path {
        match self {
            Self::Create(path)
            | Self::Write(path, ..)
            | Self::Sync(path)
            | Self::Rename(path, _)
            | Self::Remove(path)
            | Self::MakeFolders(path)
            | Self::RemoveFolder(path)
            | Self::SyncFolder(path) => path,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Write(..) => "write",
            Self::Sync(_) => "sync",
            Self::Rename(..) => "rename",
            Self::Remove(_) => "remove",
            Self::MakeFolders(_) => "make folders",
            Self::RemoveFolder(_) => "remove folder",
            Self::SyncFolder(_) => "sync folder",
        }
    }
}

/// Which operations fail, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    /// Of this name; of any when empty.
    pub(super) operation: &'static str,
    /// How many of them still succeed.
    pub(super) after: usize,
    pub(super) errno: nix::errno::Errno,
    /// On paths that hold this.
    pub(super) path: &'static str,
}

#[derive(Debug, Default)]
pub(super) struct FaultyDisk {
    done: Mutex<Vec<Operation>>,
    fault: Mutex<Option<Fault>>,
    unsynced: Mutex<Vec<(PathBuf, u64, usize)>>,
    /// How long a whole tile takes to become durable.
    tile_sync_pause: Duration,
}

impl FaultyDisk {
    /// One that makes a whole tile durable slowly.
    pub(super) fn slow_tiles(tile_sync_pause: Duration) -> Self {
        Self { tile_sync_pause, ..Self::default() }
    }

    /// From now on operations fail as `fault` says; `None` mends the disk.
    pub(super) fn set(&self, fault: Option<Fault>) {
        *self.fault.lock().unwrap() = fault;
    }

    pub(super) fn operations(&self) -> Vec<Operation> {
        self.done.lock().unwrap().clone()
    }

    pub(super) fn count(&self) -> usize {
        self.done.lock().unwrap().len()
    }

    /// Notes an operation, or fails it.
    fn ask(&self, operation: Operation) -> io::Result<()> {
        if let Some(fault) = self.fault.lock().unwrap().as_mut()
            && (fault.operation.is_empty() || fault.operation == operation.name())
            && operation.path().to_string_lossy().contains(fault.path)
        {
            if fault.after == 0 {
                return Err(io::Error::from_raw_os_error(fault.errno as i32));
            }
            fault.after -= 1;
        }
        self.done.lock().unwrap().push(operation);
        Ok(())
    }

    /// What the kernel does with pages that it could not write: they are gone, and the next sync says
    /// nothing of it.
    fn lose_unsynced(&self, file: &File, path: &Path) {
        let mut unsynced = self.unsynced.lock().unwrap();
        for (_, offset, len) in unsynced.iter().filter(|lost| lost.0 == path) {
            KERNEL.write_at(file, path, *offset, &vec![0xee; *len]).unwrap();
        }
        unsynced.retain(|lost| lost.0 != path);
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.ask(Operation::Create(path.to_owned()))?;
        self.unsynced.lock().unwrap().retain(|one| one.0 != path);
        KERNEL.create(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        KERNEL.open(path)
    }

    fn write_at(&self, file: &File, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let asked = self.ask(Operation::Write(path.to_owned(), offset, bytes.to_vec()));
        // A write that fails may have written a part.
        let bytes = if asked.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        self.unsynced.lock().unwrap().push((path.to_owned(), offset, bytes.len()));
        KERNEL.write_at(file, path, offset, bytes)?;
        asked
    }

    fn sync(&self, file: &File, path: &Path) -> io::Result<()> {
        if path.to_string_lossy().contains("tile") {
            std::thread::sleep(self.tile_sync_pause);
        }
        let asked = self.ask(Operation::Sync(path.to_owned()));
        if asked.is_err() {
            self.lose_unsynced(file, path);
        }
        self.unsynced.lock().unwrap().retain(|one| one.0 != path);
        asked
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.ask(Operation::Rename(from.to_owned(), to.to_owned()))?;
        KERNEL.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.ask(Operation::Remove(path.to_owned()))?;
        KERNEL.remove(path)
    }

    fn make_folders(&self, path: &Path) -> io::Result<()> {
        self.ask(Operation::MakeFolders(path.to_owned()))?;
        KERNEL.make_folders(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.ask(Operation::RemoveFolder(path.to_owned()))?;
        KERNEL.remove_folder(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.ask(Operation::SyncFolder(path.to_owned()))
    }
}

/// What a power cut leaves of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Left {
    /// Nothing.
    Nothing,
    /// All names, and of the bytes the first half of each write.
    NamesAndTornBytes,
    /// All bytes, and no name.
    BytesWithoutNames,
    /// Everything, as after an end of the process alone.
    Everything,
}

/// Bytes of a file: those on the disk, and those that were written.
#[derive(Clone, Default)]
struct Inode {
    durable: Vec<u8>,
    torn: Vec<u8>,
    written: Vec<u8>,
}

/// The files of a folder as a power cut may leave them.
#[derive(Clone, Default)]
pub(super) struct Remains {
    inodes: Vec<Inode>,
    /// Files (with their inode) and folders, as they are named and as they are named on the disk.
    named: BTreeMap<PathBuf, Option<usize>>,
    durable: BTreeMap<PathBuf, Option<usize>>,
}

impl Remains {
    /// Takes the next operation into account; returns whether it changes anything.
    pub(super) fn apply(&mut self, operation: &Operation) -> bool {
        let known_count = self.named.len();
        match operation {
            Operation::Create(path) => {
                self.inodes.push(Inode::default());
                self.named.insert(path.clone(), Some(self.inodes.len() - 1));
            }
            Operation::Write(path, offset, bytes) => {
                let inode = self.inode(path);
                overwrite(&mut inode.written, *offset, bytes);
                overwrite(&mut inode.torn, *offset, &bytes[..bytes.len() / 2]);
            }
            Operation::Sync(path) => {
                let inode = self.inode(path);
                inode.durable.clone_from(&inode.written);
                inode.torn.clone_from(&inode.written);
            }
            Operation::Rename(from, to) => {
                let inode = self.named.remove(from).unwrap();
                self.named.insert(to.clone(), inode);
            }
            Operation::Remove(path) | Operation::RemoveFolder(path) => {
                self.named.remove(path);
            }
            Operation::MakeFolders(path) => {
                for folder in path.ancestors() {
                    self.named.entry(folder.to_owned()).or_insert(None);
                }
            }
            Operation::SyncFolder(path) => {
                let is_in = |name: &Path| name.parent() == Some(path);
                self.durable.retain(|name, _| !is_in(name));
                let now = self.named.iter().filter(|(name, _)| is_in(name));
                self.durable.extend(now.map(|(name, inode)| (name.clone(), *inode)));
            }
        }
        !matches!(operation, Operation::MakeFolders(_)) || self.named.len() > known_count
    }

    fn inode(&mut self, path: &Path) -> &mut Inode {
        let number = self.named[path].unwrap();
        &mut self.inodes[number]
    }

    /// Writes what is left of `log` to `folder`.
    pub(super) fn write(&self, left: Left, log: &Path, folder: &Path) {
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).unwrap();
        let has_names = matches!(left, Left::NamesAndTornBytes | Left::Everything);
        let names = if has_names { &self.named } else { &self.durable };
        for (path, inode) in names {
            let Ok(inside) = path.strip_prefix(log) else { continue };
            // A folder whose name is lost takes all below with it.
            let is_reached = path
                .ancestors()
                .skip(1)
                .take_while(|above| above.starts_with(log) && *above != log)
                .all(|above| names.contains_key(above));
            if !is_reached {
                continue;
            }
            let target = folder.join(inside);
            match inode.map(|number| &self.inodes[number]) {
                None => fs::create_dir_all(target).unwrap(),
                Some(inode) => {
                    let bytes = match left {
                        Left::Nothing => &inode.durable,
                        Left::NamesAndTornBytes => &inode.torn,
                        Left::BytesWithoutNames | Left::Everything => &inode.written,
                    };
                    // The zeros at its end take no time, nor does looking for them.
                    let zeros: usize = bytes
                        .rchunks(ZEROS.len())
                        .take_while(|chunk| **chunk == ZEROS[..chunk.len()])
                        .map(<[u8]>::len)
                        .sum();
                    fs::write(&target, &bytes[..bytes.len() - zeros]).unwrap();
                    let file = fs::OpenOptions::new().write(true).open(&target).unwrap();
                    file.set_len(bytes.len() as u64).unwrap();
                }
            }
        }
    }
}

fn overwrite(bytes: &mut Vec<u8>, offset: u64, with: &[u8]) {
    let offset = usize::try_from(offset).unwrap();
    let end = offset + with.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(with);
}
