//! ggml's tensor types: how many bytes a tensor takes. The table is llama.cpp's (`ggml.c`, `type_traits`).

use potluck_core::TensorType;

/// 32-bit floats.
pub const F32: TensorType = TensorType(0);
/// 16-bit floats.
pub const F16: TensorType = TensorType(1);
/// Blocks of 32 values in 4 bits and a scale.
pub const Q4_0: TensorType = TensorType(2);
/// Blocks of 32 values in 8 bits and a scale.
pub const Q8_0: TensorType = TensorType(8);
/// Blocks of 128 values in one bit and a scale.
pub const Q1_0: TensorType = TensorType(41);
/// Blocks of 64 values in two bits and a scale.
pub const Q2_0: TensorType = TensorType(42);

/// Name, values in a block, bytes of a block; by ggml's number. Types that ggml has dropped are not listed.
const LAYOUTS: [(u32, &str, u64, u64); 35] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

fn layout(kind: TensorType) -> Option<&'static (u32, &'static str, u64, u64)> {
    LAYOUTS.iter().find(|layout| layout.0 == kind.0)
}

/// ggml's name for a type (`Q4_K`); none where this build does not know it.
pub fn name(kind: TensorType) -> Option<&'static str> {
    layout(kind).map(|l| l.1)
}

/// Bytes of one row of `width` values; none where the type is unknown, the row is no whole number of blocks, or the
/// product overflows.
pub fn row_bytes(kind: TensorType, width: u64) -> Option<u64> {
    let &(_, _, values, bytes) = layout(kind)?;
    if !width.is_multiple_of(values) {
        return None;
    }
    (width / values).checked_mul(bytes)
}

/// Bytes of a tensor of that shape (fastest varying extent first); none as in [`row_bytes`].
pub fn tensor_bytes(kind: TensorType, shape: &[u64]) -> Option<u64> {
    let (&width, rest) = shape.split_first()?;
    let row = row_bytes(kind, width)?;
    rest.iter().try_fold(row, |bytes, &extent| bytes.checked_mul(extent)).filter(|&bytes| i64::try_from(bytes).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_the_common_types() {
        assert_eq!(tensor_bytes(F32, &[3, 5]), Some(60));
        assert_eq!(tensor_bytes(TensorType(3), &[576, 49152]), Some(576 / 32 * 20 * 49152));
        assert_eq!(tensor_bytes(TensorType(12), &[256, 2, 2]), Some(576));
        assert_eq!(tensor_bytes(TensorType(12), &[255]), None, "not a whole block");
        assert_eq!(tensor_bytes(TensorType(4), &[32]), None, "dropped by ggml");
        assert_eq!(tensor_bytes(TensorType(u32::MAX), &[32]), None);
        assert_eq!(tensor_bytes(F32, &[u64::MAX, 2]), None);
        assert_eq!(tensor_bytes(F32, &[1 << 40, 1 << 40]), None);
        assert_eq!(tensor_bytes(F32, &[]), None);
    }
}
