//! A loopback address for each cell: a cell keeps its ports over restarts, and none meets another's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Ports of the pod, but for the server's.
pub const RELAY_HTTP: u16 = 9600;
pub const RELAY_GRPC: u16 = 9650;
pub const AGENT: u16 = 9605;
pub const ADMIN: u16 = 9680;
pub const SCHEDULER: u16 = 9005;
pub const STATUS: u16 = 9004;

/// One pod's addresses and its folder, which goes with it.
#[derive(Debug)]
pub struct Place {
    number: u32,
    pub folder: PathBuf,
}

impl Place {
    /// The process takes part, because the tests of two work trees may run at once.
    pub fn new() -> Place {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("agent-shim-faults-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Place { number, folder }
    }

    fn host(&self, last: u32) -> IpAddr {
        let process = std::process::id() % 6000;
        let octet = |n: u32| (n % 250) as u8;
        // 127.20 to 127.243; cells count in the two last octets, with their spare address.
        let cell = self.number * 2 + last;
        let third = (process / 200) * 8 + cell / 250;
        IpAddr::V4(Ipv4Addr::new(
            127,
            20 + octet(process % 200),
            octet(third),
            1 + octet(cell),
        ))
    }

    pub fn ip(&self) -> IpAddr {
        self.host(0)
    }

    /// Where a server may come back instead.
    pub fn beside(&self) -> IpAddr {
        self.host(1)
    }

    /// The server's two ports, HTTP first: of this cell alone, for the shim looks for servers that
    /// listen at its ports on other addresses. Below those that the system gives out by itself.
    pub fn ports(&self) -> [u16; 2] {
        let first = (std::process::id() * 97 + self.number * 2) % 22_000;
        [10_300 + first as u16, 10_301 + first as u16]
    }

    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(), port)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}
