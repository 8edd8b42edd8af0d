//! Ports that no other test takes.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU32, Ordering},
};

/// Below the ports that systems give to outgoing connections: one of those on a server's port would keep the server
/// from starting again.
const FIRST: u16 = 12_000;
const COUNT: u32 = 16_000;

/// A port on 127.0.0.1, ours as long as this lives, whether the server is up or down.
#[derive(Debug)]
pub(crate) struct Port {
    number: u16,
    /// The claim on the number. Other tests look for it, and the servers themselves use TCP only.
    _claim: UdpSocket,
}

impl Port {
    /// Claims a free port.
    pub(crate) fn claim() -> Self {
        static TRIES: AtomicU32 = AtomicU32::new(0);
        for _ in 0..COUNT {
            // Each process begins elsewhere, and none tries a number again soon.
            let nth = std::process::id().wrapping_mul(101).wrapping_add(TRIES.fetch_add(1, Ordering::Relaxed)) % COUNT;
            let number = FIRST + u16::try_from(nth).expect("a number below the count");
            let Ok(claim) = UdpSocket::bind((Ipv4Addr::LOCALHOST, number)) else { continue };
            if TcpListener::bind((Ipv4Addr::LOCALHOST, number)).is_ok() {
                return Self { number, _claim: claim };
            }
        }
        panic!("there is no free port between {FIRST} and {}", u32::from(FIRST) + COUNT);
    }

    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.number).into()
    }
}
