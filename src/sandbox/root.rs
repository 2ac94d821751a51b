//! The root of a child: empty, or with what the driver of a card needs. Never a folder of the host.
//!
//! It is built between fork and exec, in the child's own view of the mounts and with the powers of its own
//! user namespace, and is read-only when the program starts.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chdir, pivot_root, setresgid, setresuid};

use super::Ids;

/// A folder that is there wherever the spawner runs; the new root is mounted over it, in the child's own
/// view, and then becomes the root.
const MOUNT_POINT: &str = "/proc";
/// Where the host's root is while things are taken from it.
const OLD: &str = "/old";
/// Where the kernel's word on the child's processes is while the child's own part is taken from it.
const PROCESSES: &str = "/processes";
/// What the kernel says of the child itself: the driver names its threads there.
const OWN_PROCESS: &str = "/proc/self";
/// Size of a root and most files and folders in it: it holds no more than short texts.
const OPTIONS: &str = "size=256k,nr_inodes=128,mode=555";

/// One thing in a root that is not empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Placed {
    /// A file of the host, to be read and mapped as code.
    Library {
        /// Its path there, without symbolic links.
        from: PathBuf,
        /// Its path in the root.
        at: PathBuf,
    },
    /// A device of the host, under its own path.
    Device(PathBuf),
    /// A text.
    Text {
        /// Its path in the root.
        at: PathBuf,
        /// What it says.
        text: Vec<u8>,
    },
}

fn none() -> Option<&'static str> {
    None
}

/// Makes an empty, read-only folder the root, and lets go of the host's.
///
/// # Errors
///
/// What the kernel says.
pub fn enter_empty() -> Result<(), Errno> {
    let options = Some("size=4k,nr_inodes=1,mode=555");
    mount(Some("empty"), MOUNT_POINT, Some("tmpfs"), MsFlags::MS_RDONLY | of_a_root(), options)?;
    chdir(MOUNT_POINT)?;
    // Both the same: the old root is stacked on the new one, and taken off again.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

/// Makes a read-only folder the root that holds `placed` and what the kernel says of the child itself, and lets
/// go of the host's root. From here on the process is `ids`, to whom the root belongs.
///
/// # Errors
///
/// What the kernel says; `ENOENT` for a file or device that is there no more.
pub fn enter_with(placed: &[Placed], ids: Ids) -> Result<(), Errno> {
    // In a user namespace nobody makes files but those who exist there. Capabilities stay.
    let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    let before = umask(Mode::from_bits_truncate(0o222));
    mount(Some("root"), MOUNT_POINT, Some("tmpfs"), of_a_root(), Some(OPTIONS))?;
    chdir(MOUNT_POINT)?;
    fs::create_dir("old").map_err(errno_of)?;
    pivot_root(".", "old")?;
    chdir("/")?;
    placed.iter().try_for_each(put)?;
    put_own_process()?;
    umount2(OLD, MntFlags::MNT_DETACH)?;
    fs::remove_dir(OLD).map_err(errno_of)?;
    umask(before);
    mount(none(), "/", none(), MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | of_a_root(), none())
}

/// What holds for each root.
fn of_a_root() -> MsFlags {
    MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME
}

fn put(placed: &Placed) -> Result<(), Errno> {
    match placed {
        Placed::Library { from, at } => bind(from, at, MsFlags::MS_NODEV),
        Placed::Device(path) => bind(path, path, MsFlags::MS_NOEXEC),
        Placed::Text { at, text } => {
            make_folder_of(at)?;
            fs::write(at, text).map_err(errno_of)
        }
    }
}

/// Shows a file of the host, to be read alone as far as it is no device, under less powers.
fn bind(from: &Path, at: &Path, less: MsFlags) -> Result<(), Errno> {
    let from = Path::new(OLD).join(from.strip_prefix("/").map_err(|_| Errno::EINVAL)?);
    make_folder_of(at)?;
    File::create_new(at).map_err(errno_of)?;
    mount(Some(&from), at, none(), MsFlags::MS_BIND, none())?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    mount(none(), at, none(), flags | less, none())
}

/// Shows what the kernel says of this process, which is the first of its namespace and becomes the program.
/// Where somebody has covered a part of the host's `/proc`, the kernel shows none anew: then there is nothing.
fn put_own_process() -> Result<(), Errno> {
    fs::create_dir_all(OWN_PROCESS).map_err(errno_of)?;
    fs::create_dir(PROCESSES).map_err(errno_of)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match mount(Some("proc"), PROCESSES, Some("proc"), flags, none()) {
        Ok(()) => {
            let own = Path::new(PROCESSES).join("1");
            mount(Some(&own), OWN_PROCESS, none(), MsFlags::MS_BIND, none())?;
            umount2(PROCESSES, MntFlags::MNT_DETACH)?;
        }
        Err(Errno::EPERM) => {}
        Err(errno) => return Err(errno),
    }
    fs::remove_dir(PROCESSES).map_err(errno_of)
}

fn make_folder_of(at: &Path) -> Result<(), Errno> {
    let folder = at.parent().ok_or(Errno::EINVAL)?;
    fs::create_dir_all(folder).map_err(errno_of)
}

fn errno_of(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
