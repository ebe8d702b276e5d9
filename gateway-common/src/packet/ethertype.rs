//! EtherTypes in network order.

/// IPv4.
pub const IPV4: [u8; 2] = [0x08, 0x00];
/// ARP.
pub const ARP: [u8; 2] = [0x08, 0x06];
/// IPv6.
pub const IPV6: [u8; 2] = [0x86, 0xdd];
/// VLAN tag (IEEE 802.1Q).
pub const VLAN: [u8; 2] = [0x81, 0x00];
/// Outer VLAN tag (IEEE 802.1ad).
pub const OUTER_VLAN: [u8; 2] = [0x88, 0xa8];
