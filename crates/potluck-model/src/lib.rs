//! GGUF models as data: parse, describe, cut into stages. No IO.
