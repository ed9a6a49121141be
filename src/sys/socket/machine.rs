//! Names of this machine: its addresses, and its current boot.

use once_cell::sync::OnceCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses of this host's interfaces that are up, loopback last. Link-local addresses are omitted, because they mean
/// nothing without an interface.
pub fn own_addresses() -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: the list comes from the system, is walked to its end and is freed once. Each address is read as its
    // family's type.
    unsafe {
        if libc::getifaddrs(&mut list) != 0 {
            return found;
        }
        let mut at = list;
        while let Some(entry) = at.as_ref() {
            at = entry.ifa_next;
            if entry.ifa_addr.is_null() || entry.ifa_flags & libc::IFF_UP as u32 == 0 {
                continue;
            }
            match i32::from((*entry.ifa_addr).sa_family) {
                libc::AF_INET => {
                    let address = entry.ifa_addr.cast::<libc::sockaddr_in>().read_unaligned();
                    found.push(IpAddr::V4(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr))));
                }
                libc::AF_INET6 => {
                    let address = entry.ifa_addr.cast::<libc::sockaddr_in6>().read_unaligned();
                    let address = Ipv6Addr::from(address.sin6_addr.s6_addr);
                    if !address.is_unicast_link_local() {
                        found.push(IpAddr::V6(address));
                    }
                }
                _ => {}
            }
        }
        libc::freeifaddrs(list);
    }
    found.sort_by_key(|address| (address.is_loopback(), address.is_ipv6()));
    found.dedup();
    found
}

/// Identifier of this machine's current boot, different on every machine and after every boot; zero if unreadable.
pub fn boot_id() -> [u8; 16] {
    // Cached: every transfer needs it, and it is constant while this process lives. A failure may be a lack of descriptors.
    static BOOT: OnceCell<[u8; 16]> = OnceCell::new();
    BOOT.get_or_try_init(read_boot_id).copied().unwrap_or_default()
}

fn read_boot_id() -> std::io::Result<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: Vec<u8> = text.bytes().filter_map(|b| (b as char).to_digit(16)).map(|d| d as u8).collect();
    let mut id = [0; 16];
    if digits.len() == 32 {
        for (byte, pair) in id.iter_mut().zip(digits.chunks(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
    }
    Ok(id)
}
