//! A kernel that is older than Forebay serves: what is missing is said in one sentence, and nothing breaks. Run by
//! `cargo xtask vm test` on such kernels alone.

use gateway_user::cli::check::{gather, judge};

use super::*;

#[test]
#[ignore = "needs a kernel before 5.15: cargo xtask vm test --kernel 5.10"]
fn what_an_older_kernel_lacks_is_one_clear_sentence() {
    if at_least(5, 15) {
        println!("skipped: this kernel is served");
        return;
    }
    let names = ["lo".to_owned()];
    let findings = judge(&gather(&names, Path::new("/sys/fs/bpf"), &[]));
    let kernel = findings.iter().find(|one| one.check == "kernel").unwrap();
    assert!(!kernel.ok, "{kernel:?}");
    assert_eq!(
        kernel.remedy.as_deref(),
        Some("run Linux 5.15 or newer, or use --datapath off")
    );
    let bare = Bare::new("below");
    for mode in [AttachMode::Native, AttachMode::Clsact, AttachMode::Generic] {
        let said = match bare.open("up0", mode) {
            Ok(attachment) => {
                assert_eq!(attachment.mode, mode);
                "works".to_owned()
            }
            Err(sentence) => {
                assert!(sentence.contains("needs Linux 5.15"), "{sentence}");
                sentence
            }
        };
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.len() < 400, "{said}");
        assert!(
            !said.contains("not Forebay's"),
            "nobody else is there: {said}"
        );
        println!("fact: {} = {said}", mode.name());
    }
}
