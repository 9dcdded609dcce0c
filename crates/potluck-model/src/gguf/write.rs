//! Writing a header: tensors contiguous and in order, as the engine's loader wants them.

use potluck_core::{MetaArray, MetaValue};

use super::{ALIGNMENT_DEFAULT, GgufError, MAGIC, NAME_BYTES_MAX, TensorSpec, VERSION};
use crate::types;

/// The header of a GGUF v3 with these tensors one after the other, each padded to 32 bytes; ends where the first
/// tensor's bytes start.
///
/// # Errors
/// `Tensor` where a tensor has no size; `Bound` where a name is too long, or all tensors together are.
pub fn write(metadata: &[(String, MetaValue)], tensors: &[TensorSpec]) -> Result<Vec<u8>, GgufError> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        write_bytes(&mut out, key.as_bytes());
        write_value(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        let bytes = write_tensor(&mut out, tensor, offset)?.next_multiple_of(ALIGNMENT_DEFAULT);
        offset = offset.checked_add(bytes).ok_or(GgufError::Bound {
            what: "the size of all tensors",
            value: u64::MAX,
            max: i64::MAX as u64,
        })?;
    }
    if !tensors.is_empty() {
        out.resize(out.len().next_multiple_of(ALIGNMENT_DEFAULT as usize), 0);
    }
    Ok(out)
}

/// Appends one tensor's entry; its bytes.
fn write_tensor(out: &mut Vec<u8>, tensor: &TensorSpec, offset: u64) -> Result<u64, GgufError> {
    let value = tensor.name.len() as u64;
    if value > NAME_BYTES_MAX {
        return Err(GgufError::Bound { what: "a tensor's name", value, max: NAME_BYTES_MAX });
    }
    let bytes = types::tensor_bytes(tensor.kind, &tensor.shape).ok_or_else(|| GgufError::Tensor {
        name: tensor.name.clone(),
        kind: tensor.kind.0,
        shape: tensor.shape.clone(),
        what: "it has no size",
    })?;
    write_bytes(out, tensor.name.as_bytes());
    out.extend((tensor.shape.len() as u32).to_le_bytes());
    out.extend(tensor.shape.iter().flat_map(|extent| extent.to_le_bytes()));
    out.extend(tensor.kind.0.to_le_bytes());
    out.extend(offset.to_le_bytes());
    Ok(bytes)
}

fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u64).to_le_bytes());
    out.extend(bytes);
}

fn write_value(out: &mut Vec<u8>, value: &MetaValue) {
    let mut tagged = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        MetaValue::U8(n) => tagged(0, &n.to_le_bytes()),
        MetaValue::I8(n) => tagged(1, &n.to_le_bytes()),
        MetaValue::U16(n) => tagged(2, &n.to_le_bytes()),
        MetaValue::I16(n) => tagged(3, &n.to_le_bytes()),
        MetaValue::U32(n) => tagged(4, &n.to_le_bytes()),
        MetaValue::I32(n) => tagged(5, &n.to_le_bytes()),
        MetaValue::F32(bits) => tagged(6, &bits.to_le_bytes()),
        MetaValue::Bool(b) => tagged(7, &[u8::from(*b)]),
        MetaValue::String(text) => {
            tagged(8, &[]);
            write_bytes(out, text.as_bytes());
        }
        MetaValue::Array(array) => {
            tagged(9, &[]);
            write_array(out, array);
        }
        MetaValue::U64(n) => tagged(10, &n.to_le_bytes()),
        MetaValue::I64(n) => tagged(11, &n.to_le_bytes()),
        MetaValue::F64(bits) => tagged(12, &bits.to_le_bytes()),
    }
}

fn write_array(out: &mut Vec<u8>, array: &MetaArray) {
    let mut numbers = |kind: u32, len: usize, bytes: &mut dyn Iterator<Item = u8>| {
        out.extend(kind.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
        out.extend(bytes);
    };
    match array {
        MetaArray::U8(v) => numbers(0, v.len(), &mut v.iter().copied()),
        MetaArray::I8(v) => numbers(1, v.len(), &mut v.iter().flat_map(|n| n.to_le_bytes())),
        MetaArray::U16(v) => numbers(2, v.len(), &mut v.iter().flat_map(|n| n.to_le_bytes())),
        MetaArray::I16(v) => numbers(3, v.len(), &mut v.iter().flat_map(|n| n.to_le_bytes())),
        MetaArray::U32(v) => numbers(4, v.len(), &mut v.iter().flat_map(|n| n.to_le_bytes())),
        MetaArray::I32(v) => numbers(5, v.len(), &mut v.iter().flat_map(|n| n.to_le_bytes())),
        MetaArray::F32(v) => numbers(6, v.len(), &mut v.iter().flat_map(|n| n.to_le_bytes())),
        MetaArray::Bool(v) => numbers(7, v.len(), &mut v.iter().map(|&b| u8::from(b))),
        MetaArray::String(v) => {
            numbers(8, v.len(), &mut std::iter::empty());
            v.iter().for_each(|bytes| write_bytes(out, bytes));
        }
        MetaArray::U64(v) => numbers(10, v.len(), &mut v.iter().flat_map(|n| n.to_le_bytes())),
        MetaArray::I64(v) => numbers(11, v.len(), &mut v.iter().flat_map(|n| n.to_le_bytes())),
        MetaArray::F64(v) => numbers(12, v.len(), &mut v.iter().flat_map(|n| n.to_le_bytes())),
    }
}
