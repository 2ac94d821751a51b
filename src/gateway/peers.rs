//! How many connections each peer has: no more than its share, so that one peer cannot take all.
//!
//! A peer is an IPv4 address, or the first half of an IPv6 address, which is what one customer or machine
//! is given. All who come through Unix sockets count as one: the kernel does not tell this process, which
//! has a user namespace of its own, who they are. Nothing is kept of a peer that has no connection.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use super::locked;

/// Who connects.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Peer {
    /// An IPv4 address.
    V4([u8; 4]),
    /// A network of IPv6 addresses (/64).
    V6([u8; 8]),
    /// Whoever may use a Unix socket of ours.
    Unix,
}

impl From<IpAddr> for Peer {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let mut network = [0; 8];
                network.copy_from_slice(&address.octets()[..8]);
                Self::V6(network)
            }
        }
    }
}

/// The peers that have connections.
#[derive(Debug)]
pub(super) struct Peers {
    counts: Mutex<HashMap<Peer, u16>>,
    /// Most connections of one peer.
    share: u16,
}

/// A connection that counts until it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    peers: Arc<Peers>,
    peer: Peer,
}

impl Peers {
    pub(super) fn new(share: u16) -> Self {
        Self { counts: Mutex::default(), share }
    }

    /// Counts a connection of this peer; `None` when it has its share.
    pub(super) fn admit(self: &Arc<Self>, peer: Peer) -> Option<Counted> {
        let mut counts = locked(&self.counts);
        let count = counts.entry(peer).or_default();
        // A count of zero is below every share, so nothing is left in the table of who is refused.
        if *count >= self.share {
            return None;
        }
        *count += 1;
        Some(Counted { peers: Arc::clone(self), peer })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = locked(&self.peers.counts);
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(text: &str) -> Peer {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn a_peer_is_an_address_or_half_of_a_long_one() {
        assert_ne!(peer("127.0.0.1"), peer("127.0.0.2"));
        assert_eq!(peer("::ffff:127.0.0.1"), peer("127.0.0.1"), "one machine, by either name");
        assert_eq!(peer("2001:db8:1:2::1"), peer("2001:db8:1:2:ffff::9"));
        assert_ne!(peer("2001:db8:1:2::1"), peer("2001:db8:1:3::1"));
    }

    #[test]
    fn a_peer_has_its_share_and_no_more_and_is_forgotten_with_its_last_connection() {
        let peers = Arc::new(Peers::new(2));
        let (one, other) = (peer("127.0.0.1"), peer("127.0.0.2"));
        let first = peers.admit(one).unwrap();
        let second = peers.admit(one).unwrap();
        assert!(peers.admit(one).is_none());
        let others = peers.admit(other).unwrap();
        assert!(peers.admit(Peer::Unix).is_some());
        drop(first);
        let third = peers.admit(one).unwrap();
        assert!(peers.admit(one).is_none());
        drop((second, third, others));
        assert!(locked(&peers.counts).is_empty());
    }
}
