//! Go's `golang.org/x/mod/sumdb` reads the log: `note` opens the checkpoint, `tlog` checks the
//! inclusion of every record and the consistency of sizes.

use cloister::audit::proof_file::ProofFile;

use super::*;
use crate::support;

/// Where Debian's `golang-golang-x-mod-dev` puts its sources.
const GO_PATH: &str = "/usr/share/gocode";

/// Builds a program of `tests/peers` without a network; `None` where Go or the library is missing.
pub(crate) fn build(folder: &Path, name: &str) -> Option<PathBuf> {
    let has_library = Path::new(GO_PATH).join("src/golang.org/x/mod/sumdb/tlog").is_dir();
    let has_go = Command::new("go").arg("version").output().is_ok_and(|done| done.status.success());
    if !has_library || !has_go {
        support::skip("Go's tlog library", "no golang-go with golang-golang-x-mod-dev");
        return None;
    }
    let program = folder.join(name);
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
    let done = Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(peers.join(name).join("main.go"))
        .envs([("GO111MODULE", "off"), ("GOPATH", GO_PATH), ("GOFLAGS", ""), ("CGO_ENABLED", "0")])
        .env("GOCACHE", concat!(env!("CARGO_MANIFEST_DIR"), "/target/go-cache"))
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Some(program)
}

#[test]
fn another_implementation_proves_every_record_and_every_older_size() {
    let folder = Folder::new("go");
    let Some(program) = build(&folder.0, "sumdb") else { return };
    let (mut log, _) = Log::open(&folder.log(), folder.signer()).unwrap();
    let mut older = Vec::new();
    // The last has three levels of tiles.
    for size in [1, 2, 255, 256, 257, 1000, 65_536, 66_000] {
        let kept = folder.0.join(format!("{size}.txt"));
        grow(&mut log, &folder.log(), size, &kept);
        let read = |checkpoints: &[PathBuf]| {
            let mut command = Command::new(&program);
            command.arg(folder.log()).arg(folder.0.join("audit.vkey")).args(checkpoints);
            command.output().unwrap()
        };
        let done = read(&older);
        let told = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "size {size}: {told}");
        let want =
            format!("{size} records included, consistent with {} older checkpoints\n", older.len());
        assert_eq!(String::from_utf8(done.stdout).unwrap(), want);
        older.push(kept);
    }
    // A control: it refuses a checkpoint of another log, and a changed record.
    let other = Folder::new("go-other");
    let (mut log, _) = Log::open(&other.log(), folder.signer()).unwrap();
    log.append(some_event(7)).unwrap();
    log.commit().unwrap();
    let reader = |log: &Path, checkpoint: &Path| {
        let mut command = Command::new(&program);
        command.arg(log).arg(folder.0.join("audit.vkey")).arg(checkpoint).output().unwrap()
    };
    assert!(!reader(&folder.log(), &other.log().join("checkpoint")).status.success());
    let bundle = folder.log().join("tile/entries/000");
    let mut bytes = fs::read(&bundle).unwrap();
    bytes[100] ^= 1;
    fs::write(&bundle, bytes).unwrap();
    let refused = reader(&folder.log(), &older[0]);
    assert!(String::from_utf8_lossy(&refused.stderr).starts_with("record 0: "), "{refused:?}");
}

/// What one key hands over to the next is a checkpoint that both signed.
#[test]
fn another_implementation_opens_what_two_keys_signed_with_either() {
    let (folder, next) = (Folder::new("go-rotated"), Folder::new("go-next"));
    let Some(program) = build(&folder.0, "sumdb") else { return };
    let read = |words: &[&Path]| Command::new(&program).args(words).output().unwrap();
    let (before, after) = (folder.0.join("audit.vkey"), next.0.join("audit.vkey"));
    let (mut log, _) = Log::open(&folder.log(), folder.signer()).unwrap();
    let kept = folder.0.join("kept.txt");
    grow(&mut log, &folder.log(), 300, &kept);
    let size = log.rotate(next.signer(), 0).unwrap().unwrap();
    grow(&mut log, &folder.log(), 600, &folder.0.join("newest.txt"));
    let proof = folder.log().join(format!("rotation/{size}.tlog-proof"));
    let proof = ProofFile::parse(&fs::read_to_string(proof).unwrap()).unwrap();
    let handed = folder.0.join("handed.txt");
    fs::write(&handed, &proof.note).unwrap();

    let done = read(&[Path::new("-note"), &handed, &before, &after]);
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{told}");
    assert_eq!(done.stdout, b"opened by each of 2 keys and by all\n");
    // With the new key the log extends it, the record of the change among its own.
    let done = read(&[&folder.log(), &after, &handed]);
    let told = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{told}");
    assert_eq!(done.stdout, b"600 records included, consistent with 1 older checkpoints\n");
    // Controls: one key signed what was kept before the change, and no third one signed anything.
    assert!(!read(&[Path::new("-note"), &kept, &before, &after]).status.success());
    assert!(read(&[Path::new("-note"), &kept, &before]).status.success());
    let third = Folder::new("go-third");
    let third = third.0.join("audit.vkey");
    assert!(!read(&[Path::new("-note"), &handed, &before, &after, &third]).status.success());
}
