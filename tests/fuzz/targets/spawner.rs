//! The spawner's loop: any sequence of commands, broken frames, failed starts and ends of children. No child
//! is made; what stands in for the kernel checks what it is asked for.
#![no_main]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{PipeWriter, pipe};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;

use cloister::ipc::{Channel, Error, Message};
use cloister::sandbox::{Ids, Role};
use cloister::spawner::Profile;
use cloister::spawner::message::{ChildId, Exit, Failed, FromSpawner, Stage, ToSpawner};
use cloister::spawner::serve::{CHILDREN_COUNT_MAX, Hands, Offer, Spawner, Start};
use cloister::sys::numa::Node;
use libfuzzer_sys::fuzz_target;

const ROLES: [Role; 5] =
    [Role::Gateway, Role::Worker, Role::Loader, Role::Opener, Role::Supervisor];
/// The supervisor is none that may be started.
const OFFERS: [Offer; 4] = [
    Offer { role: Role::Gateway, ids: Ids { uid: 100, gid: 100 }, count: 1 },
    Offer { role: Role::Worker, ids: Ids { uid: 200, gid: 200 }, count: 90 },
    Offer { role: Role::Loader, ids: Ids { uid: 300, gid: 300 }, count: 1 },
    Offer { role: Role::Opener, ids: Ids { uid: u32::MAX, gid: 400 }, count: 2 },
];
/// `EPERM`: what a start that fails here says.
const REFUSED: i32 = 1;

/// What stands for the kernel: a child is a pipe, whose writing end closes when it ends.
#[derive(Default)]
struct World {
    alive: BTreeMap<RawFd, PipeWriter>,
    ended: BTreeMap<RawFd, Exit>,
    refuses: bool,
    started: usize,
}

impl World {
    fn end(&mut self, child: RawFd, exit: Exit) {
        if self.alive.remove(&child).is_some() {
            self.ended.insert(child, exit);
        }
    }
}

struct Kernel(Rc<RefCell<World>>);

impl Hands for Kernel {
    fn start(&self, start: &Start<'_>, fds: &[OwnedFd]) -> Result<OwnedFd, Failed> {
        let offer = OFFERS.iter().find(|offer| offer.role == start.role).expect("an offered role");
        let first = u64::from(offer.ids.uid);
        let uids = first..first + u64::from(offer.count);
        assert!(uids.contains(&u64::from(start.ids.uid)), "{start:?}");
        assert!(![0, u32::MAX].contains(&start.ids.uid), "root, or whoever starts it");
        assert_eq!(start.ids.gid, offer.ids.gid);
        assert!(start.node.is_none_or(|node| node.number < 2), "{start:?}");
        assert!(fds.len() <= 8);
        let mut world = self.0.borrow_mut();
        assert!(world.alive.len() + world.ended.len() < CHILDREN_COUNT_MAX);
        world.started += 1;
        if world.refuses {
            world.refuses = false;
            return Err(Failed { stage: Stage::Exec, errno: REFUSED });
        }
        let (reader, writer) = pipe().expect("room for a pipe");
        let child = OwnedFd::from(reader);
        world.alive.insert(child.as_raw_fd(), writer);
        Ok(child)
    }

    fn kill(&self, child: &OwnedFd) -> Result<(), nix::errno::Errno> {
        self.0.borrow_mut().end(child.as_raw_fd(), Exit::Signal(9));
        Ok(())
    }

    fn reap(&self, child: &OwnedFd) -> Result<Option<Exit>, nix::errno::Errno> {
        Ok(self.0.borrow_mut().ended.remove(&child.as_raw_fd()))
    }

    fn bury(&self, child: &OwnedFd) {
        let exit = self.0.borrow_mut().ended.remove(&child.as_raw_fd());
        assert_eq!(exit.map(|_| ()), Some(()), "one is waited for that was not killed");
    }
}

fuzz_target!(|bytes: &[u8]| drive(&mut bytes.iter().copied()));

fn drive(bytes: &mut dyn Iterator<Item = u8>) {
    let (near, far) = Channel::pair().expect("room for a channel");
    let raw = UnixDatagram::from(near.as_fd().try_clone_to_owned().expect("room for a copy"));
    let world = Rc::new(RefCell::new(World::default()));
    let node =
        |number| Node { number, processors: vec![number], total_bytes: 1, available_bytes: 1 };
    let profile = if bytes.next() == Some(0) { Profile::Evaluation } else { Profile::Full };
    let given = (profile, OFFERS.to_vec());
    let mut spawner = Spawner::new(Kernel(Rc::clone(&world)), given, vec![node(0), node(1)], &far);
    let mut alive = BTreeSet::new();
    while let Some(kind) = bytes.next() {
        let mut next = || bytes.next().unwrap_or_default();
        let started = world.borrow().started;
        let command = match kind % 8 {
            0 => {
                // One of those alive ends by itself.
                let place = usize::from(next());
                let child = world.borrow().alive.keys().nth(place).copied();
                let Some(child) = child else { continue };
                world.borrow_mut().end(child, Exit::Code(i32::from(next())));
                None
            }
            1 => {
                world.borrow_mut().refuses = true;
                continue;
            }
            2 => {
                let frame: Vec<u8> = (0..next() % 96).map(|_| next()).collect();
                raw.send(&frame).expect("room in the channel");
                match ToSpawner::decode(&frame) {
                    Ok(command) if command.descriptor_count() == 0 => Some(command),
                    _ => {
                        assert!(spawner.turn().is_err(), "a broken frame is obeyed: {frame:?}");
                        break;
                    }
                }
            }
            3 => Some(ToSpawner::Kill { child: ChildId::from(next()) }),
            _ => {
                let node = Some(u16::from(next())).filter(|&node| node < 4);
                let [child, role, index, descriptors] = [next(), next(), next(), next() % 9];
                let role = ROLES[usize::from(role) % ROLES.len()];
                let (child, index) = (child.into(), index.into());
                Some(ToSpawner::Spawn { child, role, index, descriptors: descriptors.into(), node })
            }
        };
        if let Some(command) = command.filter(|_| kind % 8 != 2) {
            let fds: Vec<BorrowedFd<'_>> = vec![raw.as_fd(); command.descriptor_count()];
            near.send(&command, &fds).expect("room in the channel");
        }
        spawner.turn().expect("what is well formed never ends the loop");
        hear(&near, command, &mut alive);
        assert!(world.borrow().started <= started + 1, "one command starts one child");
        while !world.borrow().ended.is_empty() {
            spawner.turn().expect("an end never ends the loop");
            hear(&near, None, &mut alive);
        }
        assert_eq!(alive.len(), world.borrow().alive.len());
    }
    spawner.end();
    let world = world.borrow();
    assert!(world.alive.is_empty() && world.ended.is_empty(), "a child outlives the spawner");
}

/// Takes the answers to `command`, and the ends; each child starts and ends once.
fn hear(near: &Channel, command: Option<ToSpawner>, alive: &mut BTreeSet<ChildId>) {
    let mut waiting = match command {
        Some(ToSpawner::Spawn { child, .. }) => Some(child),
        _ => None,
    };
    loop {
        match near.try_recv::<FromSpawner>() {
            Ok((FromSpawner::Spawned { child }, fds)) => {
                assert_eq!((waiting.take(), fds.len()), (Some(child), 1));
                assert!(alive.insert(child), "a name is given twice");
            }
            Ok((FromSpawner::Failed { child, .. }, _)) => assert_eq!(waiting.take(), Some(child)),
            Ok((FromSpawner::Exited { child, .. }, _)) => assert!(alive.remove(&child)),
            Err(Error::WouldBlock) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(waiting, None, "a command without an answer");
}
