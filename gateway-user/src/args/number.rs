//! Numbers as flags take them.

pub(super) fn parse_count(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "give a whole number".to_owned())
}

pub(super) fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err("give a port from 1 to 65535".to_owned()),
    }
}
