//! Completion scripts: each shell has one, it names what there is, and bash takes it.

use crate::support::*;

#[tokio::test]
async fn each_shell_has_a_script_with_all_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let said = said(program().args(["completion", shell])).await;
        assert_eq!((said.code, said.stderr.as_str()), (Some(0), ""), "{shell}");
        for word in ["explain", "completion", "datapath", "trace"] {
            assert!(said.stdout.contains(word), "{shell}: {word}");
        }
    }
}

#[tokio::test]
async fn bash_completes_by_it() {
    let ask = "eval \"$(\"$FOREBAY\" completion bash)\"
        COMP_WORDS=(forebay st); COMP_CWORD=1
        _forebay forebay st forebay
        echo \"${COMPREPLY[@]}\"";
    let mut bash = tokio::process::Command::new("bash");
    bash.args(["--norc", "-c", ask]);
    bash.env("FOREBAY", env!("CARGO_BIN_EXE_forebay"));
    let said = said(&mut bash).await;
    assert_eq!(
        (said.stdout.as_str(), said.stderr.as_str()),
        ("status\n", "")
    );
}
