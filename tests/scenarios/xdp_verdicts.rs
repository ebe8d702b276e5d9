//! Packets through the loaded object.

use gateway_tests::object::Object;

#[test]
fn the_kernel_takes_the_programs() {
    let [xdp, lookup] = Object::load().unwrap().verified_instructions().unwrap();
    println!("verified instructions: forebay_xdp {xdp}, forebay_lookup {lookup}");
    assert!(xdp < 100_000 && lookup < 10_000, "{xdp} {lookup}");
}
