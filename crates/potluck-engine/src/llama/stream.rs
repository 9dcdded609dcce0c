//! A virtual file as the C stream that llama.cpp reads a model from.

use std::{fs::File, io, os::unix::fs::FileExt as _, sync::Arc};

use potluck_model::{Extent, VirtualFile};

use crate::EngineError;

/// Reads the bytes of a virtual file at any position, in place.
#[derive(Debug)]
pub(crate) struct VirtualReader {
    /// Each extent with the position where it ends.
    extents: Vec<(u64, Extent)>,
    files: Vec<Arc<File>>,
    size: u64,
}

impl VirtualReader {
    /// Checks that every extent lies within its file, so that a read is short only where a disk fails.
    pub(crate) fn new(extents: &[Extent], files: &[Arc<File>]) -> Result<Self, EngineError> {
        let refuse = |why: String| Err(EngineError::Model(why));
        let sizes: Vec<u64> = files.iter().map(|file| file.metadata().map_or(0, |m| m.len())).collect();
        let mut end = 0u64;
        let mut ends = Vec::with_capacity(extents.len());
        for extent in extents {
            if let Extent::File { file, offset, len } = extent {
                let Some(&size) = sizes.get(usize::from(*file)) else {
                    return refuse(format!("file {file} of its virtual file is missing; there are {}", files.len()));
                };
                if offset.checked_add(*len).is_none_or(|end| end > size) {
                    return refuse(format!("{len} bytes at {offset} lie beyond the end of a file of {size} bytes"));
                }
            }
            let Some(next) = end.checked_add(extent.len()).filter(|&end| end <= i64::MAX as u64) else {
                return refuse("its virtual file is longer than any file can be".into());
            };
            end = next;
            ends.push((end, extent.clone()));
        }
        Ok(Self { extents: ends, files: files.to_vec(), size: end })
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The file and offset behind the whole of it, where it is one range of one file.
    fn single(&self) -> Option<(&File, u64)> {
        match self.extents.as_slice() {
            [(_, Extent::File { file, offset, .. })] => Some((&self.files[usize::from(*file)], *offset)),
            _ => None,
        }
    }

    /// Reads what one extent has at `position`; 0 bytes at the end.
    fn read_some(&self, position: u64, into: &mut [u8]) -> io::Result<usize> {
        let index = self.extents.partition_point(|(end, _)| *end <= position);
        let Some((end, extent)) = self.extents.get(index) else { return Ok(0) };
        let start = end - extent.len();
        let skip = position - start;
        let len = into.len().min((end - position).try_into().unwrap_or(usize::MAX));
        match extent {
            Extent::Inline(bytes) => into[..len].copy_from_slice(&bytes[skip as usize..skip as usize + len]),
            Extent::Zeros { .. } => into[..len].fill(0),
            Extent::File { file, offset, .. } => {
                return self.files[usize::from(*file)].read_at(&mut into[..len], offset + skip);
            }
        }
        Ok(len)
    }

    /// Fills `into` from `position` on.
    pub(crate) fn read_exact_at(&self, position: u64, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            match self.read_some(position + done as u64, &mut into[done..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }
}

/// An open C stream; closed when dropped. A mapping that llama.cpp made of it stays.
pub(crate) struct Stream {
    file: *mut libc::FILE,
    /// True if the stream is a real file at a place that can be mapped.
    pub(crate) mappable: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: opened by us, closed once, and llama.cpp keeps no stream after it has loaded.
        unsafe { libc::fclose(self.file) };
    }
}

impl Stream {
    /// Opens `file`: as the file itself where it is one range of one file and `map` is wished, else through callbacks.
    pub(crate) fn open(file: &VirtualFile, files: &[Arc<File>], map: bool) -> Result<Self, EngineError> {
        let reader = VirtualReader::new(&file.extents, files)?;
        if reader.size() != file.size {
            return Err(EngineError::Mismatch { what: "size".into(), expected: file.size, found: reader.size() });
        }
        match reader.single() {
            Some((file, offset)) if map && offset % TENSOR_ALIGNMENT == 0 => Self::of_file(file, offset),
            _ => Self::of_reader(reader),
        }
    }

    pub(crate) fn as_ptr(&self) -> *mut libc::FILE {
        self.file
    }

    fn of_file(file: &File, offset: u64) -> Result<Self, EngineError> {
        use std::os::fd::IntoRawFd as _;
        let failed = |why| EngineError::system("opening the model's file", why);
        let descriptor = file.try_clone().map_err(failed)?.into_raw_fd();
        // SAFETY: the descriptor is ours alone; `fdopen` takes it over unless it fails, and then we close it.
        let stream = unsafe { libc::fdopen(descriptor, c"rb".as_ptr()) };
        if stream.is_null() {
            let error = io::Error::last_os_error();
            // SAFETY: as above.
            unsafe { libc::close(descriptor) };
            return Err(failed(error));
        }
        let stream = Self { file: stream, mappable: true };
        // SAFETY: the stream is open.
        match unsafe { libc::fseek(stream.file, offset as libc::c_long, libc::SEEK_SET) } {
            0 => Ok(stream),
            _ => Err(failed(io::Error::last_os_error())),
        }
    }
}

/// What llama.cpp wants the data of a mapped file to be aligned to.
const TENSOR_ALIGNMENT: u64 = 32;

#[cfg(target_os = "linux")]
mod cookie {
    use std::ffi::{c_char, c_int, c_void};

    use super::{EngineError, Stream, VirtualReader};

    #[repr(C)]
    struct Functions {
        read: Option<unsafe extern "C" fn(*mut c_void, *mut c_char, usize) -> isize>,
        write: Option<unsafe extern "C" fn(*mut c_void, *const c_char, usize) -> isize>,
        seek: Option<unsafe extern "C" fn(*mut c_void, *mut i64, c_int) -> c_int>,
        close: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    }

    unsafe extern "C" {
        fn fopencookie(cookie: *mut c_void, mode: *const c_char, functions: Functions) -> *mut libc::FILE;
    }

    /// Bytes that the C library reads ahead: few calls for the many small reads of a header.
    const BUFFER_BYTES: usize = 1 << 20;

    struct Cookie {
        reader: VirtualReader,
        position: u64,
    }

    unsafe extern "C" fn read(cookie: *mut c_void, into: *mut c_char, len: usize) -> isize {
        // SAFETY: the cookie is the box of `of_reader`, alive until `close`, and a stream is used by one thread.
        let cookie = unsafe { &mut *cookie.cast::<Cookie>() };
        // SAFETY: the C library passes a buffer of `len` bytes.
        let into = unsafe { std::slice::from_raw_parts_mut(into.cast::<u8>(), len) };
        match cookie.reader.read_some(cookie.position, into) {
            Ok(n) => {
                cookie.position += n as u64;
                n as isize
            }
            Err(_) => -1,
        }
    }

    unsafe extern "C" fn seek(cookie: *mut c_void, offset: *mut i64, whence: c_int) -> c_int {
        // SAFETY: as in `read`; the C library passes a valid pointer to the offset.
        let (cookie, offset) = unsafe { (&mut *cookie.cast::<Cookie>(), &mut *offset) };
        let from = match whence {
            libc::SEEK_SET => Some(0),
            libc::SEEK_CUR => i64::try_from(cookie.position).ok(),
            libc::SEEK_END => i64::try_from(cookie.reader.size()).ok(),
            _ => None,
        };
        match from.and_then(|from| from.checked_add(*offset)).filter(|&to| to >= 0) {
            Some(to) => {
                cookie.position = to as u64;
                *offset = to;
                0
            }
            None => -1,
        }
    }

    unsafe extern "C" fn close(cookie: *mut c_void) -> c_int {
        // SAFETY: made by `Box::into_raw` in `of_reader`; the C library calls this once.
        drop(unsafe { Box::from_raw(cookie.cast::<Cookie>()) });
        0
    }

    impl Stream {
        pub(super) fn of_reader(reader: VirtualReader) -> Result<Self, EngineError> {
            let cookie = Box::into_raw(Box::new(Cookie { reader, position: 0 }));
            let functions = Functions { read: Some(read), write: None, seek: Some(seek), close: Some(close) };
            // SAFETY: the functions match the C library's signatures, and the cookie lives until `close`.
            let file = unsafe { fopencookie(cookie.cast(), c"rb".as_ptr(), functions) };
            if file.is_null() {
                // SAFETY: the stream was not made, so nobody else will free the cookie.
                drop(unsafe { Box::from_raw(cookie) });
                return Err(EngineError::system("opening a virtual file", std::io::Error::last_os_error()));
            }
            // SAFETY: no byte was read yet; a null buffer makes the C library allocate.
            unsafe { libc::setvbuf(file, std::ptr::null_mut(), libc::_IOFBF, BUFFER_BYTES) };
            Ok(Self { file, mappable: false })
        }
    }
}

/// Elsewhere a virtual file is copied to an unnamed temporary file, which needs room on the disk until it is loaded.
#[cfg(not(target_os = "linux"))]
impl Stream {
    fn of_reader(reader: VirtualReader) -> Result<Self, EngineError> {
        let failed = |why: io::Error| EngineError::system("copying a virtual file", why);
        // SAFETY: no arguments; the result is checked.
        let file = unsafe { libc::tmpfile() };
        if file.is_null() {
            return Err(failed(io::Error::last_os_error()));
        }
        let stream = Self { file, mappable: false };
        let mut buffer = vec![0; 1 << 20];
        let mut position = 0;
        loop {
            let n = reader.read_some(position, &mut buffer).map_err(failed)?;
            if n == 0 {
                break;
            }
            // SAFETY: the buffer holds `n` bytes, the stream is open.
            if unsafe { libc::fwrite(buffer.as_ptr().cast(), 1, n, file) } != n {
                return Err(failed(io::Error::last_os_error()));
            }
            position += n as u64;
        }
        // SAFETY: the stream is open.
        unsafe { libc::rewind(file) };
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn file(bytes: &[u8]) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Arc::new(file)
    }

    #[test]
    fn a_virtual_file_reads_as_its_extents_in_order() {
        let files = [file(b"0123456789"), file(b"abcdef")];
        let extents = [
            Extent::Inline(b"head".to_vec()),
            Extent::File { file: 1, offset: 2, len: 3 },
            Extent::Zeros { len: 2 },
            Extent::File { file: 0, offset: 9, len: 1 },
        ];
        let whole = b"headcde\0\x009";
        let reader = VirtualReader::new(&extents, &files).unwrap();
        assert_eq!(reader.size(), whole.len() as u64);
        for start in 0..whole.len() {
            for end in start..=whole.len() {
                let mut bytes = vec![1; end - start];
                reader.read_exact_at(start as u64, &mut bytes).unwrap();
                assert_eq!(bytes, whole[start..end], "{start}..{end}");
            }
        }
        assert!(reader.read_exact_at(8, &mut [0; 3]).is_err(), "beyond the end");
    }

    #[test]
    fn extents_outside_their_files_are_refused() {
        let files = [file(b"0123456789")];
        for (extent, why) in [
            (Extent::File { file: 1, offset: 0, len: 1 }, "missing"),
            (Extent::File { file: 0, offset: 8, len: 3 }, "beyond the end"),
            (Extent::File { file: 0, offset: u64::MAX, len: 3 }, "beyond the end"),
            (Extent::Zeros { len: u64::MAX }, "longer than"),
        ] {
            let refusal = VirtualReader::new(&[extent], &files).unwrap_err().to_string();
            assert!(refusal.contains(why), "{refusal}");
        }
    }
}
