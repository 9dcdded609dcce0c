//! Reading a header from a stranger's file.

use std::{collections::HashSet, io::Read};

use potluck_core::{MetaArray, MetaValue, TensorType};
use serde_bytes::ByteBuf;

use super::{
    ALIGNMENT_DEFAULT, ALIGNMENT_KEY, ALIGNMENT_MAX, ARRAY_LEN_MAX, DIMENSIONS_MAX, GgufError, HEADER_BYTES_MAX,
    Header, KEY_BYTES_MAX, KEYS_MAX, MAGIC, NAME_BYTES_MAX, STRING_BYTES_MAX, TENSORS_MAX, TensorInfo, VERSION,
};
use crate::types;

/// Reads the header of a GGUF that is wholly in memory. Any bytes may be given: this never panics.
///
/// # Errors
/// See [`GgufError`].
pub fn parse(bytes: &[u8]) -> Result<Header, GgufError> {
    read(bytes, bytes.len() as u64)
}

/// Reads the header of a GGUF of `file_bytes` bytes from its start; reads no tensor. Buffer the reader yourself.
///
/// # Errors
/// See [`GgufError`]; `Io` where the reader fails.
pub fn read(reader: impl Read, file_bytes: u64) -> Result<Header, GgufError> {
    let mut source = Source { reader, at: 0 };
    let magic = source.array("the magic number")?;
    if magic != MAGIC {
        return Err(GgufError::Magic(magic));
    }
    let version = source.u32()?;
    if !(2..=VERSION).contains(&version) {
        return Err(GgufError::Version(version));
    }
    let tensors = source.count("the number of tensors", TENSORS_MAX)?;
    let keys = source.count("the number of metadata keys", KEYS_MAX)?;
    let metadata = read_metadata(&mut source, keys)?;
    let alignment = alignment(&metadata)?;
    let tensors = read_tensors(&mut source, tensors)?;
    let data_offset = if tensors.is_empty() { source.at } else { source.at.next_multiple_of(alignment) };
    check_places(&tensors, alignment, file_bytes.saturating_sub(data_offset))?;
    Ok(Header { version, metadata, tensors, alignment, data_offset })
}

fn read_metadata<R: Read>(source: &mut Source<R>, count: u64) -> Result<Vec<(String, MetaValue)>, GgufError> {
    let mut seen = HashSet::new();
    let mut metadata = Vec::new();
    for _ in 0..count {
        let key = source.text("a metadata key", KEY_BYTES_MAX)?;
        if key.is_empty() || !seen.insert(key.clone()) {
            return Err(GgufError::DuplicateKey(key));
        }
        let value = read_value(source, &key)?;
        metadata.push((key, value));
    }
    Ok(metadata)
}

fn read_value<R: Read>(source: &mut Source<R>, key: &str) -> Result<MetaValue, GgufError> {
    let what = "a metadata value";
    Ok(match source.u32()? {
        0 => MetaValue::U8(u8::from_le_bytes(source.array(what)?)),
        1 => MetaValue::I8(i8::from_le_bytes(source.array(what)?)),
        2 => MetaValue::U16(u16::from_le_bytes(source.array(what)?)),
        3 => MetaValue::I16(i16::from_le_bytes(source.array(what)?)),
        4 => MetaValue::U32(source.u32()?),
        5 => MetaValue::I32(i32::from_le_bytes(source.array(what)?)),
        6 => MetaValue::F32(source.u32()?),
        7 => MetaValue::Bool(boolean(key, source.array::<1>(what)?[0])?),
        8 => MetaValue::String(source.text("a metadata string", STRING_BYTES_MAX)?),
        9 => MetaValue::Array(read_array(source, key)?),
        10 => MetaValue::U64(source.u64()?),
        11 => MetaValue::I64(i64::from_le_bytes(source.array(what)?)),
        12 => MetaValue::F64(source.u64()?),
        _ => return Err(GgufError::Value { key: key.into(), what: "a type that GGUF does not define" }),
    })
}

fn read_array<R: Read>(source: &mut Source<R>, key: &str) -> Result<MetaArray, GgufError> {
    let kind = source.u32()?;
    let len = source.count("an array's length", ARRAY_LEN_MAX)?;
    Ok(match kind {
        0 => MetaArray::U8(source.bytes("an array", len)?),
        1 => MetaArray::I8(source.numbers(len, i8::from_le_bytes)?),
        2 => MetaArray::U16(source.numbers(len, u16::from_le_bytes)?),
        3 => MetaArray::I16(source.numbers(len, i16::from_le_bytes)?),
        4 => MetaArray::U32(source.numbers(len, u32::from_le_bytes)?),
        5 => MetaArray::I32(source.numbers(len, i32::from_le_bytes)?),
        6 => MetaArray::F32(source.numbers(len, u32::from_le_bytes)?),
        7 => MetaArray::Bool(
            source.bytes("an array", len)?.into_iter().map(|b| boolean(key, b)).collect::<Result<_, _>>()?,
        ),
        8 => MetaArray::String(
            (0..len)
                .map(|_| source.string("an array's string", STRING_BYTES_MAX).map(ByteBuf::from))
                .collect::<Result<_, _>>()?,
        ),
        9 => return Err(GgufError::Value { key: key.into(), what: "an array of arrays" }),
        10 => MetaArray::U64(source.numbers(len, u64::from_le_bytes)?),
        11 => MetaArray::I64(source.numbers(len, i64::from_le_bytes)?),
        12 => MetaArray::F64(source.numbers(len, u64::from_le_bytes)?),
        _ => return Err(GgufError::Value { key: key.into(), what: "an element type that GGUF does not define" }),
    })
}

fn boolean(key: &str, byte: u8) -> Result<bool, GgufError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(GgufError::Value { key: key.into(), what: "a boolean that is neither 0 nor 1" }),
    }
}

fn alignment(metadata: &[(String, MetaValue)]) -> Result<u64, GgufError> {
    let Some((_, value)) = metadata.iter().find(|(key, _)| key == ALIGNMENT_KEY) else { return Ok(ALIGNMENT_DEFAULT) };
    let error = |what| GgufError::Value { key: ALIGNMENT_KEY.into(), what };
    let MetaValue::U32(alignment) = *value else { return Err(error("a type that is not u32")) };
    if !alignment.is_power_of_two() {
        return Err(error("a value that is no power of two"));
    }
    if u64::from(alignment) > ALIGNMENT_MAX {
        return Err(GgufError::Bound { what: ALIGNMENT_KEY, value: alignment.into(), max: ALIGNMENT_MAX });
    }
    Ok(alignment.into())
}

fn read_tensors<R: Read>(source: &mut Source<R>, count: u64) -> Result<Vec<TensorInfo>, GgufError> {
    let mut seen = HashSet::new();
    let mut tensors = Vec::new();
    for _ in 0..count {
        let tensor = read_tensor(source)?;
        if tensor.name.is_empty() || !seen.insert(tensor.name.clone()) {
            return Err(GgufError::DuplicateTensor(tensor.name));
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read_tensor<R: Read>(source: &mut Source<R>) -> Result<TensorInfo, GgufError> {
    let name = source.text("a tensor's name", NAME_BYTES_MAX)?;
    let dimensions = source.u32()?;
    if dimensions > DIMENSIONS_MAX {
        let (value, max) = (dimensions.into(), DIMENSIONS_MAX.into());
        return Err(GgufError::Bound { what: "a tensor's number of extents", value, max });
    }
    let shape = (0..dimensions).map(|_| source.u64()).collect::<Result<Vec<_>, _>>()?;
    let kind = TensorType(source.u32()?);
    let offset = source.u64()?;
    let error = |what| GgufError::Tensor { name: name.clone(), kind: kind.0, shape: shape.clone(), what };
    if shape.is_empty() || shape.contains(&0) {
        return Err(error("it holds no value"));
    }
    if types::name(kind).is_none() {
        return Err(error("the type is unknown"));
    }
    let bytes = types::tensor_bytes(kind, &shape).ok_or_else(|| error("no whole blocks, or too large"))?;
    Ok(TensorInfo { name, kind, shape, offset, bytes })
}

/// Each tensor is aligned, inside the file's `available` bytes of data, and shares no byte with another.
fn check_places(tensors: &[TensorInfo], alignment: u64, available: u64) -> Result<(), GgufError> {
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|t| t.offset);
    let mut end = 0;
    for t in order {
        let error = |what| GgufError::Place { name: t.name.clone(), offset: t.offset, bytes: t.bytes, what };
        if !t.offset.is_multiple_of(alignment) {
            return Err(error("not aligned"));
        }
        if t.offset < end {
            return Err(error("it overlaps another tensor"));
        }
        end = t.offset.checked_add(t.bytes).filter(|&end| end <= available).ok_or_else(|| error("outside the file"))?;
    }
    Ok(())
}

/// A reader that counts, and that never takes more than a header's bytes.
struct Source<R> {
    reader: R,
    at: u64,
}

impl<R: Read> Source<R> {
    fn advance(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.at = self.at.saturating_add(bytes);
        if self.at > HEADER_BYTES_MAX {
            return Err(GgufError::Bound { what: "the header", value: self.at, max: HEADER_BYTES_MAX });
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        self.advance(N as u64)?;
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes).map_err(|e| io_error(&e, what))?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.array("a number")?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.array("a number")?))
    }

    fn count(&mut self, what: &'static str, max: u64) -> Result<u64, GgufError> {
        let value = self.u64()?;
        if value > max { Err(GgufError::Bound { what, value, max }) } else { Ok(value) }
    }

    /// `len` bytes; the memory grows with what has arrived, whatever `len` says.
    fn bytes(&mut self, what: &'static str, len: u64) -> Result<Vec<u8>, GgufError> {
        self.advance(len)?;
        let mut bytes = Vec::new();
        self.reader.by_ref().take(len).read_to_end(&mut bytes).map_err(|e| io_error(&e, what))?;
        if bytes.len() as u64 == len { Ok(bytes) } else { Err(GgufError::Truncated(what)) }
    }

    fn string(&mut self, what: &'static str, max: u64) -> Result<Vec<u8>, GgufError> {
        let len = self.count(what, max)?;
        self.bytes(what, len)
    }

    fn text(&mut self, what: &'static str, max: u64) -> Result<String, GgufError> {
        String::from_utf8(self.string(what, max)?).map_err(|_| GgufError::NotUtf8(what))
    }

    fn numbers<T, const N: usize>(&mut self, len: u64, from: fn([u8; N]) -> T) -> Result<Vec<T>, GgufError> {
        let bytes = self.bytes("an array", len.saturating_mul(N as u64))?;
        Ok(bytes.as_chunks::<N>().0.iter().copied().map(from).collect())
    }
}

fn io_error(error: &std::io::Error, what: &'static str) -> GgufError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => GgufError::Truncated(what),
        _ => GgufError::Io(error.to_string()),
    }
}
