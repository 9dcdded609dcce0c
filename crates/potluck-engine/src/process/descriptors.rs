//! Sending open files over a socket.

use std::{
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use crate::load::FILES_MAX;

/// Bytes of control data that hold [`FILES_MAX`] descriptors.
// SAFETY: a computation without effects.
const CONTROL_BYTES: usize = unsafe { libc::CMSG_SPACE((FILES_MAX * size_of::<RawFd>()) as u32) } as usize;

/// Room for control data, aligned as the system wants it.
#[repr(C)]
union Control {
    _align: libc::cmsghdr,
    bytes: [u8; CONTROL_BYTES],
}

fn message(bytes: &mut libc::iovec, control: &mut MaybeUninit<Control>, len: usize) -> libc::msghdr {
    // SAFETY: all zeros is a valid message without anything.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = bytes;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = len as _;
    message
}

/// Sends `bytes` (all of them: few enough for one message) with `files` beside them.
pub(crate) fn send(socket: &UnixStream, bytes: &[u8; 4], files: &[BorrowedFd<'_>]) -> io::Result<()> {
    if files.len() > FILES_MAX {
        let why = format!("{} files; the limit is {FILES_MAX}", files.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let mut content = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = MaybeUninit::<Control>::zeroed();
    let payload = size_of_val(files) as u32;
    // SAFETY: a computation without effects.
    let space = unsafe { libc::CMSG_SPACE(payload) };
    let space = if files.is_empty() { 0 } else { space as usize };
    let mut message = message(&mut content, &mut control, space);
    if !files.is_empty() {
        // SAFETY: the control buffer has room for the header and `FILES_MAX` descriptors, and is zeroed.
        unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(payload) as _;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for (at, file) in files.iter().enumerate() {
                data.add(at).write_unaligned(file.as_raw_fd());
            }
        }
    } else {
        message.msg_control = std::ptr::null_mut();
    }
    // SAFETY: the message describes live buffers.
    match unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) } {
        n if n == bytes.len() as isize => Ok(()),
        n if n < 0 => Err(io::Error::last_os_error()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Receives four bytes and the files beside them.
pub(crate) fn receive(socket: &UnixStream) -> io::Result<([u8; 4], Vec<OwnedFd>)> {
    let mut bytes = [0; 4];
    let mut content = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = MaybeUninit::<Control>::zeroed();
    let mut message = message(&mut content, &mut control, CONTROL_BYTES);
    #[cfg(target_os = "linux")]
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_WAITALL;
    #[cfg(not(target_os = "linux"))]
    let flags = libc::MSG_WAITALL;
    // SAFETY: the message describes live buffers.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut files = Vec::new();
    // SAFETY: the system filled the control data; the macros stay within it, and each descriptor in it is ours now.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let payload = (*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                for at in 0..payload / size_of::<RawFd>() {
                    files.push(OwnedFd::from_raw_fd(data.add(at).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    match got as usize == bytes.len() && message.msg_flags & libc::MSG_CTRUNC == 0 {
        true => Ok((bytes, files)),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read as _, io::Seek as _, io::Write as _, os::fd::AsFd as _};

    use super::*;

    #[test]
    fn files_arrive_open_and_in_order() {
        let (left, right) = UnixStream::pair().unwrap();
        let files: Vec<File> = (0..FILES_MAX as u8)
            .map(|at| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&[at]).unwrap();
                file.rewind().unwrap();
                file
            })
            .collect();
        let borrowed: Vec<_> = files.iter().map(File::as_fd).collect();
        send(&left, b"abcd", &borrowed).unwrap();
        let (bytes, got) = receive(&right).unwrap();
        assert_eq!((&bytes, got.len()), (b"abcd", FILES_MAX));
        for (at, descriptor) in got.into_iter().enumerate() {
            let mut byte = [0];
            File::from(descriptor).read_exact(&mut byte).unwrap();
            assert_eq!(usize::from(byte[0]), at);
        }
        send(&left, b"none", &[]).unwrap();
        assert_eq!(receive(&right).unwrap().1.len(), 0);
        drop(left);
        assert!(receive(&right).is_err(), "closed");
    }
}
