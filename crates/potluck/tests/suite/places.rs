//! One model, one answer: whether it lies in one file, in parts, or inside a wheel.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
};

use potluck_core::MetaValue;
use potluck_model::gguf::{self, ALIGNMENT_DEFAULT, Header, TensorInfo, TensorSpec};
use serde_json::Value;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use crate::machine::{Machine, model};

/// The small model's bytes, and its header.
fn original() -> (Vec<u8>, Header) {
    let bytes = fs::read(model()).unwrap();
    let header = gguf::parse(&bytes).unwrap();
    (bytes, header)
}

/// Writes the small model in two parts, as `llama-gguf-split` does; the second one's path.
fn write_parts(machine: &Machine) -> PathBuf {
    let (bytes, header) = original();
    let (first, second) = header.tensors.split_at(header.tensors.len() / 3);
    let split = |no: u16| {
        let total = ("split.tensors.count".to_owned(), MetaValue::I32(header.tensors.len() as i32));
        [("split.no", no), ("split.count", 2)]
            .map(|(key, n)| (key.to_owned(), MetaValue::U16(n)))
            .into_iter()
            .chain([total])
    };
    let path = |no: u32| machine.path(&format!("small-{no:05}-of-00002.gguf"));
    let head: Vec<_> = header.metadata.iter().cloned().chain(split(0)).collect();
    write_part(&path(1), &head, first, (&bytes, &header));
    write_part(&path(2), &split(1).collect::<Vec<_>>(), second, (&bytes, &header));
    path(2)
}

fn write_part(path: &PathBuf, metadata: &[(String, MetaValue)], tensors: &[TensorInfo], from: (&[u8], &Header)) {
    let spec = |t: &TensorInfo| TensorSpec { name: t.name.clone(), kind: t.kind, shape: t.shape.clone() };
    let mut part = gguf::write(metadata, &tensors.iter().map(spec).collect::<Vec<_>>()).unwrap();
    for tensor in tensors {
        let at = (from.1.data_offset + tensor.offset) as usize;
        part.extend(&from.0[at..at + tensor.bytes as usize]);
        part.resize(part.len().next_multiple_of(ALIGNMENT_DEFAULT as usize), 0);
    }
    fs::write(path, part).unwrap();
}

/// Writes a wheel with the small model stored in it, starting at a multiple of `alignment`.
fn write_wheel(machine: &Machine, name: &str, alignment: u16) -> PathBuf {
    let path = machine.path(name);
    let mut wheel = ZipWriter::new(File::create(&path).unwrap());
    let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    wheel.start_file("odd.py", stored).unwrap();
    wheel.write_all(b"odd").unwrap();
    wheel.start_file("small/small.gguf", stored.with_alignment(alignment)).unwrap();
    wheel.write_all(&original().0).unwrap();
    wheel.finish().unwrap();
    path
}

#[test]
fn local_runs_parts_and_wheels_as_it_runs_one_file() {
    let machine = Machine::new();
    let ask = |model: &str| -> Value {
        let fixed =
            ["--local", "--temperature", "0", "--max-tokens", "48", "--threads", "1", "--raw", "Once upon a time"];
        let (answer, code) = machine.json(&[&["run", "--model", model], &fixed[..]].concat());
        assert_eq!(code, 0, "{model}: {answer}");
        assert_eq!(answer["completion_tokens"], answer["tokens"].as_array().unwrap().len());
        answer["tokens"].clone()
    };
    let expected = ask(&model());
    assert_eq!(expected.as_array().unwrap().len(), 48);
    let unaligned = write_wheel(&machine, "unaligned.whl", 1);
    let aligned = write_wheel(&machine, "aligned.whl", 64);
    for path in [write_parts(&machine), unaligned, aligned] {
        assert_eq!(ask(path.to_str().unwrap()), expected, "{}", path.display());
    }
}
