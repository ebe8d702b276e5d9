//! What is behind an error.

/// An error with its causes: the kernel's own word, or why a connection failed, is often the last of several.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use aya::maps::MapError;
    use aya::sys::SyscallError;

    use super::*;

    #[test]
    fn the_kernels_own_word_is_told() {
        let error = MapError::SyscallError(SyscallError {
            call: "bpf_map_update_elem",
            io_error: std::io::Error::from_raw_os_error(libc::ENOMEM),
        });
        assert_eq!(
            chain(&error),
            "`bpf_map_update_elem` failed: Cannot allocate memory (os error 12)"
        );
    }
}
