//! What concerns several of the modules.

mod model;

use super::*;

#[test]
fn addresses_go_there_and_back() {
    for text in ["10.0.0.1", "2001:db8::1"] {
        let address: IpAddr = text.parse().unwrap();
        assert_eq!(address_of(abi_address(address)), address);
    }
    assert_eq!(
        abi_address("1.2.3.4".parse().unwrap())[10..],
        [255, 255, 1, 2, 3, 4]
    );
}
