//! Looking up rows of a quantised table, as llama.cpp's `get_rows` does.

use llama_cpp_sys_2 as sys;

use super::VirtualReader;
use crate::EngineError;

/// A table of rows that ggml can turn into `f32`: the embedding.
pub(crate) struct Table {
    reader: VirtualReader,
    to_float: sys::ggml_to_float_t,
    rows: u32,
    width: usize,
    row_bytes: usize,
    scale: f32,
    row: Vec<u8>,
}

impl Table {
    /// A table of `rows` rows of `width` values of ggml's type `kind`; each value is multiplied by `scale`.
    pub(crate) fn new(
        reader: VirtualReader,
        kind: u32,
        (rows, width, row_bytes): (u32, u32, u64),
        scale: f32,
    ) -> Result<Self, EngineError> {
        super::init();
        if kind >= sys::GGML_TYPE_COUNT {
            return Err(EngineError::Model(format!("its embedding has type {kind}, which ggml does not know")));
        }
        // SAFETY: the type is one of ggml's; the structure is static.
        let traits = unsafe { *sys::ggml_get_type_traits(kind) };
        let block = u64::try_from(traits.blck_size).unwrap_or(0);
        if block == 0 || !u64::from(width).is_multiple_of(block) {
            return Err(EngineError::Model(format!("its embedding's rows of {width} values are not whole blocks")));
        }
        if traits.to_float.is_none() && kind != sys::GGML_TYPE_F32 {
            return Err(EngineError::Model(format!("its embedding has type {kind}, which is not for tables")));
        }
        let expect = |what: &str, expected: u64, found: u64| match expected == found {
            true => Ok(()),
            false => Err(EngineError::Mismatch { what: what.into(), expected, found }),
        };
        expect("embedding row, in bytes", row_bytes, u64::from(width) / block * traits.type_size as u64)?;
        expect("embedding, in bytes", row_bytes.saturating_mul(rows.into()), reader.size())?;
        let (width, row_bytes) = (width as usize, row_bytes as usize);
        Ok(Self { reader, to_float: traits.to_float, rows, width, row_bytes, scale, row: vec![0; row_bytes] })
    }

    /// Appends the rows of `tokens` to `out`.
    ///
    /// # Errors
    /// The first token that the table does not have, or what the disk said.
    pub(crate) fn look_up(&mut self, tokens: &[u32], out: &mut Vec<f32>) -> Result<(), String> {
        out.reserve(tokens.len() * self.width);
        for &token in tokens {
            if token >= self.rows {
                return Err(format!("token {token} is not in the vocabulary of {}", self.rows));
            }
            let position = u64::from(token) * self.row_bytes as u64;
            self.reader.read_exact_at(position, &mut self.row).map_err(|e| format!("reading the embedding: {e}"))?;
            let start = out.len();
            out.resize(start + self.width, 0.0);
            self.convert(start, out);
        }
        Ok(())
    }

    fn convert(&self, start: usize, out: &mut [f32]) {
        let values = &mut out[start..];
        match self.to_float {
            // SAFETY: the row holds `width` values in whole blocks (checked by `new`), the output has room for them.
            Some(to_float) => unsafe {
                to_float(self.row.as_ptr().cast(), values.as_mut_ptr(), self.width as i64);
            },
            None => {
                for (value, bytes) in values.iter_mut().zip(self.row.chunks_exact(4)) {
                    *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                }
            }
        }
        if self.scale != 1.0 {
            values.iter_mut().for_each(|value| *value *= self.scale);
        }
    }
}
