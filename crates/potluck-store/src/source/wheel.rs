//! Wheels: a GGUF inside a zip file. Stored, it is read where it is; compressed, it is unpacked once.

use std::{fs, fs::File, io::Read as _, path::Path};

use zip::{CompressionMethod, ZipArchive, read::ZipFile};

use super::{Part, Source};
use crate::StoreError;

/// Bytes of a compressed member that we unpack: a larger one is refused.
const MEMBER_BYTES_MAX: u64 = 1 << 40;

/// The only GGUF in a wheel; a compressed one is unpacked into `extracted`.
pub(super) fn find(path: &Path, extracted: &Path) -> Result<Source, StoreError> {
    let file = File::open(path).map_err(StoreError::io(path))?;
    let no_model = |what: String| StoreError::NoModel { path: path.into(), what };
    let mut archive = ZipArchive::new(file).map_err(|e| no_model(format!("no readable wheel: {e}")))?;
    let names: Vec<String> =
        archive.file_names().flatten().filter(|name| name.ends_with(".gguf")).map(Into::into).collect();
    let [member] = names.as_slice() else {
        return Err(match names.is_empty() {
            true => no_model("no GGUF in this wheel".into()),
            false => StoreError::Several { path: path.into(), names },
        });
    };
    let mut entry = archive.by_name(member).map_err(|e| no_model(format!("{member}: {e}")))?;
    let stem = Path::new(member).file_stem().and_then(|stem| stem.to_str()).unwrap_or("model").to_owned();
    let part = match entry.compression() {
        CompressionMethod::Stored => {
            let start = entry.data_start().ok_or_else(|| no_model(format!("{member}: no data")))?;
            Part { path: path.into(), start, len: Some(entry.size()) }
        }
        _ => Part::whole(unpack(&mut entry, &stem, extracted).map_err(StoreError::io(path))?),
    };
    Ok(Source { name: stem, parts: vec![part] })
}

/// Unpacks a member unless it is there already; its path. Whole or not at all: written beside, then renamed. What a
/// crash leaves is written over by the next try.
fn unpack(entry: &mut ZipFile<'_, File>, stem: &str, folder: &Path) -> std::io::Result<std::path::PathBuf> {
    let size = entry.size();
    if size > MEMBER_BYTES_MAX {
        return Err(std::io::Error::other(format!("a member of {size} bytes; the limit is {MEMBER_BYTES_MAX}")));
    }
    let path = folder.join(format!("{stem}-{:08x}-{size}.gguf", entry.crc32()));
    if path.metadata().is_ok_and(|metadata| metadata.len() == size) {
        return Ok(path);
    }
    fs::create_dir_all(folder)?;
    let partial = path.with_extension("partial");
    let mut file = File::options().create(true).truncate(false).write(true).open(&partial)?;
    file.try_lock().map_err(|_| std::io::Error::other("another process is unpacking it; try again later"))?;
    file.set_len(0)?;
    // One byte more than announced, to notice a member that unpacks to more.
    let copied = std::io::copy(&mut entry.take(size + 1), &mut file)?;
    if copied != size {
        return Err(std::io::Error::other(format!("the member unpacks to {copied} bytes or more, not {size}")));
    }
    file.sync_all()?;
    fs::rename(&partial, &path)?;
    File::open(folder)?.sync_all()?;
    Ok(path)
}
