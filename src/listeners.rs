//! Who listens on a port of this pod, read from the kernel's own tables.
//!
//! The containers of a pod share one network namespace, so `/proc/net/tcp` and `/proc/net/tcp6`
//! show the server's listeners without any permission. It is evidence for words only: a listener
//! proves nothing, an answer does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::procfs;

/// State LISTEN in the kernel's tables.
const LISTEN: &str = "0A";
/// Largest table that is read; one line has 150 bytes.
const MAX_TABLE: u64 = 4 * 1024 * 1024;

/// The addresses on which somebody listens at `port`. Empty where the tables cannot be read.
pub fn on_port(port: u16, proc_net: &Path) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for table in ["tcp", "tcp6"] {
        // What cannot be read shows nobody.
        let _ = procfs::each_line(&proc_net.join(table), MAX_TABLE, |line| {
            found.extend(listener(line).filter(|address| address.port() == port));
        });
    }
    found.sort();
    found.dedup();
    found
}

/// The listening sockets of one table. Lines that are not understood are passed over.
pub fn parse(table: &str) -> Vec<SocketAddr> {
    table.lines().filter_map(listener).collect()
}

fn listener(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = fields.next()?;
    if fields.nth(1)? != LISTEN {
        return None;
    }
    let (ip, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Each group of eight digits is one 32-bit word in the byte order of the machine.
    let word = |i: usize| {
        let digits = ip.get(i * 8..i * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (i, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(i)?);
            }
            // gRPC binds IPv4 addresses in their mapped form.
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::TcpListener;

    #[test]
    #[cfg(target_endian = "little")]
    fn listeners_of_both_families_are_read_and_mapped_ones_shown_as_ipv4() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
             0: 0200007F:251C 00000000:0000 0A 00000000:00000000\n\
             1: 0100007F:251C 0100007F:9999 01 00000000:00000000\n\
             2: 0000000000000000FFFF00000300007F:251C 00000000000000000000000000000000:0000 0A 0\n\
             3: 00000000000000000000000001000000:251C 00000000000000000000000000000000:0000 0A 0\n\
             garbage\n";
        let shown: Vec<String> = parse(table).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.2:9500", "127.0.0.3:9500", "[::1]:9500"]);
    }

    #[test]
    fn a_real_listener_is_found_in_the_kernels_table() {
        let listener = TcpListener::bind("127.0.0.2:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(on_port(address.port(), Path::new("/proc/net")), [address]);
        assert!(on_port(address.port(), Path::new("/nonexistent")).is_empty());
    }

    proptest! {
        #[test]
        fn no_table_panics(text in "([ 0-9A-F:]{0,60}\n){0,5}") {
            parse(&text);
        }
    }
}
