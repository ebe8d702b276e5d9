//! Frames on a Unix stream socket: bounded in length, with descriptors beside them.
//!
//! A frame is sixteen bytes (a mark, the lengths of head and tail, the number of descriptors; little-endian), then the
//! head (JSON), then the tail (tables as they stand in the maps). Descriptors come with the first bytes of their frame
//! and nowhere else. A stream and not packets: a packet may be no larger than the socket's send buffer, which an
//! administrator can make smaller than a table.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Largest head: the answer about a full node table takes half of it.
pub const MAX_HEAD: usize = 256 * 1024;
/// Largest tail: configuration, a node table and a full VIP table.
pub const MAX_TAIL: usize = 256 * 1024;
/// Most descriptors of one frame: the sockets of one group.
pub const MAX_DESCRIPTORS: usize = 8;

/// First bytes of every frame.
const MARK: [u8; 4] = *b"FBAG";
const HEADER: usize = 16;
/// How much room the reader makes at a time: a peer pays for our memory with bytes of its own.
const STEP: usize = 16 * 1024;

/// One message as it travels.
#[derive(Debug, Default)]
pub struct Frame {
    /// JSON.
    pub head: Vec<u8>,
    /// Tables.
    pub tail: Vec<u8>,
    /// Descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// Why a frame cannot be read. The connection is of no use after it.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The first bytes are not ours.
    #[error("this is not forebay's protocol: a frame does not begin with its mark")]
    Mark,
    /// A length beyond the bounds.
    #[error(
        "a frame of {head} and {tail} bytes is beyond the bounds of {MAX_HEAD} and {MAX_TAIL} bytes"
    )]
    Length {
        /// Length of the head.
        head: usize,
        /// Length of the tail.
        tail: usize,
    },
    /// Descriptors that were not announced, are too many or came late.
    #[error(
        "a frame came with descriptors that it does not announce, or with more than {MAX_DESCRIPTORS}"
    )]
    Descriptors,
    /// The other side went away in the middle of a frame.
    #[error("the connection ended in the middle of a frame")]
    Truncated,
    /// The socket.
    #[error("the connection failed: {0}")]
    Socket(#[from] io::Error),
}

/// How far a frame has come.
#[derive(Debug)]
pub enum Progress {
    /// It is whole.
    Frame(Frame),
    /// More has to come.
    Waiting,
    /// The other side has closed the connection between two frames.
    Closed,
}

/// Lengths that a frame announces.
#[derive(Clone, Copy, Debug)]
struct Announced {
    head: usize,
    tail: usize,
    descriptors: usize,
}

/// Collects one frame after the other.
#[derive(Debug, Default)]
pub struct Reader {
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    announced: Option<Announced>,
}

impl Reader {
    /// Reads what the socket has. With [`RecvFlags::DONTWAIT`] it never blocks.
    ///
    /// # Errors
    /// See [`WireError`].
    pub fn read(&mut self, socket: impl AsFd, flags: RecvFlags) -> Result<Progress, WireError> {
        loop {
            let wanted = match self.announced {
                None => HEADER,
                Some(announced) => HEADER + announced.head + announced.tail,
            };
            if self.bytes.len() == wanted {
                match self.announced {
                    None => self.announced = Some(self.header()?),
                    Some(announced) => return Ok(Progress::Frame(self.finish(announced))),
                }
                continue;
            }
            let room = (wanted - self.bytes.len()).min(STEP);
            match self.receive(socket.as_fd(), room, flags) {
                Ok(0) if self.bytes.is_empty() => return Ok(Progress::Closed),
                Ok(0) => return Err(WireError::Truncated),
                Ok(_) => {}
                Err(WireError::Socket(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Progress::Waiting);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a frame has begun and is not whole.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.bytes.is_empty()
    }

    fn header(&self) -> Result<Announced, WireError> {
        let word = |at: usize| {
            let bytes = self.bytes[at..at + 4].try_into().expect("four bytes");
            u32::from_le_bytes(bytes) as usize
        };
        if self.bytes[..4] != MARK {
            return Err(WireError::Mark);
        }
        let (head, tail, descriptors) = (word(4), word(8), word(12));
        if head > MAX_HEAD || tail > MAX_TAIL {
            return Err(WireError::Length { head, tail });
        }
        if descriptors != self.descriptors.len() {
            return Err(WireError::Descriptors);
        }
        Ok(Announced {
            head,
            tail,
            descriptors,
        })
    }

    fn finish(&mut self, announced: Announced) -> Frame {
        self.announced = None;
        let mut head = std::mem::take(&mut self.bytes);
        let tail = head.split_off(HEADER + announced.head);
        head.drain(..HEADER);
        debug_assert_eq!(self.descriptors.len(), announced.descriptors);
        Frame {
            head,
            tail,
            descriptors: std::mem::take(&mut self.descriptors),
        }
    }

    fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        room: usize,
        flags: RecvFlags,
    ) -> Result<usize, WireError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let before = self.bytes.len();
        self.bytes.resize(before + room, 0);
        let received = loop {
            let mut into = [IoSliceMut::new(&mut self.bytes[before..])];
            match recvmsg(
                socket,
                &mut into,
                &mut ancillary,
                flags | RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.map_err(io::Error::from),
            }
        };
        let count = received.as_ref().map_or(0, |received| received.bytes);
        self.bytes.truncate(before + count);
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        let received = received?;
        let late = before > 0 && self.announced.is_some();
        let announced = self.announced.map_or(0, |a| a.descriptors);
        if received.flags.contains(ReturnFlags::CTRUNC)
            || self.descriptors.len() > MAX_DESCRIPTORS
            || (late && self.descriptors.len() != announced)
        {
            self.descriptors.clear();
            return Err(WireError::Descriptors);
        }
        Ok(count)
    }
}

/// Sends one frame; blocks until the socket has taken it, at most as long as its send timeout says.
///
/// # Errors
/// A frame beyond the bounds, or what the socket says.
pub fn send(
    socket: impl AsFd,
    head: &[u8],
    tail: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), WireError> {
    if head.len() > MAX_HEAD || tail.len() > MAX_TAIL {
        return Err(WireError::Length {
            head: head.len(),
            tail: tail.len(),
        });
    }
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(WireError::Descriptors);
    }
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&MARK);
    for (place, number) in [(4, head.len()), (8, tail.len()), (12, descriptors.len())] {
        header[place..place + 4].copy_from_slice(&(number as u32).to_le_bytes());
    }
    let parts = [header.as_slice(), head, tail];
    let total: usize = parts.iter().map(|part| part.len()).sum();
    let mut sent = 0;
    while sent < total {
        let mut skip = sent;
        let rest: Vec<IoSlice<'_>> = parts
            .iter()
            .filter_map(|part| {
                let here = skip.min(part.len());
                skip -= here;
                (here < part.len()).then(|| IoSlice::new(&part[here..]))
            })
            .collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if sent == 0 && !descriptors.is_empty() {
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
            debug_assert!(fits);
        }
        match sendmsg(&socket, &rest, &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(count) => sent += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(WireError::Socket(errno.into())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn read(socket: &UnixStream) -> Result<Progress, WireError> {
        Reader::default().read(socket, RecvFlags::DONTWAIT)
    }

    fn header(words: [u32; 3]) -> Vec<u8> {
        let mut bytes = MARK.to_vec();
        bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        bytes
    }

    #[test]
    fn frames_come_one_by_one_with_their_descriptors() {
        let (a, b) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            send(&a, b"one", &vec![7; 200_000], &[]).unwrap();
            send(&a, b"two", b"", &[a.as_fd()]).unwrap();
        });
        let mut reader = Reader::default();
        let mut next = || match reader.read(&b, RecvFlags::empty()).unwrap() {
            Progress::Frame(frame) => frame,
            other => panic!("{other:?}"),
        };
        let (first, second) = (next(), next());
        assert_eq!(
            (first.head.as_slice(), first.tail.len()),
            (&b"one"[..], 200_000)
        );
        assert!(first.descriptors.is_empty() && first.tail.iter().all(|byte| *byte == 7));
        assert_eq!(
            (second.head.as_slice(), second.descriptors.len()),
            (&b"two"[..], 1)
        );
        writer.join().unwrap();
        drop(second);
        assert!(matches!(
            reader.read(&b, RecvFlags::empty()).unwrap(),
            Progress::Closed
        ));
    }

    #[test]
    fn a_frame_may_come_byte_by_byte() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut bytes = header([2, 1, 0]);
        bytes.extend(b"{}x");
        let mut reader = Reader::default();
        for (at, byte) in bytes.iter().enumerate() {
            a.write_all(&[*byte]).unwrap();
            let progress = reader.read(&b, RecvFlags::DONTWAIT).unwrap();
            match progress {
                Progress::Frame(frame) => {
                    assert_eq!(
                        (at, frame.head, frame.tail),
                        (18, b"{}".to_vec(), b"x".to_vec())
                    );
                }
                Progress::Waiting => assert!(at < 18 && reader.is_busy()),
                Progress::Closed => panic!("closed at {at}"),
            }
        }
    }

    #[test]
    fn what_is_no_frame_is_named() {
        let table: &[(&str, Vec<u8>, &str)] = &[
            (
                "another protocol",
                b"GET / HTTP/1.1\r\n".to_vec(),
                "does not begin with its mark",
            ),
            (
                "a huge head",
                header([MAX_HEAD as u32 + 1, 0, 0]),
                "beyond the bounds",
            ),
            ("a huge tail", header([0, u32::MAX, 0]), "beyond the bounds"),
            (
                "descriptors that are not there",
                header([0, 0, 1]),
                "descriptors",
            ),
            (
                "half a header",
                header([0, 0, 0])[..9].to_vec(),
                "in the middle",
            ),
            ("half a body", header([9, 0, 0]), "in the middle"),
        ];
        for (what, bytes, expected) in table {
            let (mut a, b) = UnixStream::pair().unwrap();
            a.write_all(bytes).unwrap();
            drop(a);
            let error = read(&b).expect_err(what).to_string();
            assert!(error.contains(expected), "{what}: {error}");
        }
    }

    #[test]
    fn stray_descriptors_are_closed_and_named() {
        let stray = |first: usize, count: usize, announced: u32| {
            let (a, b) = UnixStream::pair().unwrap();
            let (watched, other_end) = UnixStream::pair().unwrap();
            let mut bytes = header([4, 0, announced]);
            bytes.extend(b"null");
            let (before, after) = bytes.split_at(first);
            if !before.is_empty() {
                (&a).write_all(before).unwrap();
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let fds = vec![watched.as_fd(); count];
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
            sendmsg(
                &a,
                &[IoSlice::new(after)],
                &mut ancillary,
                SendFlags::empty(),
            )
            .unwrap();
            let result = read(&b).map(|_| ()).map_err(|error| error.to_string());
            drop(watched);
            // Nobody holds it any more: the other end sees the end.
            other_end.set_nonblocking(true).unwrap();
            let end = io::Read::read(&mut &other_end, &mut [0; 1]);
            assert_eq!(end.unwrap(), 0, "{count} descriptors at {first} stay open");
            result
        };
        for (first, count, announced) in [
            (0, 1, 0),
            (0, 2, 1),
            (0, 9, 8),
            (0, 9, 9),
            (0, 200, 8),
            (0, 200, 9),
            (16, 1, 0),
            (18, 1, 0),
        ] {
            let error = stray(first, count, announced).expect_err("stray descriptors");
            assert!(error.contains("descriptors"), "{error}");
        }
        assert_eq!(stray(0, 3, 3), Ok(()));
    }
}
