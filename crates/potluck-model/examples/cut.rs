//! Cuts a GGUF into slices that are files of their own: what a stage would read in place, written out.
//!
//! `cargo run -p potluck-model --example cut -- MODEL.gguf OUT_DIR 3` writes `OUT_DIR/0..10.gguf` and so on.
#![allow(clippy::unwrap_used, reason = "an example stops at the first error")]

use std::{fs, io::Write as _, path::PathBuf};

use potluck_core::LayerRange;
use potluck_model::{Facts, Segment, gguf, manifest_of, slice};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, parts] = arguments.as_slice() else {
        eprintln!("usage: cut MODEL.gguf OUT_DIR PARTS");
        std::process::exit(2);
    };
    let file = fs::read(model).unwrap();
    let header = gguf::parse(&file).unwrap();
    let data = |name: &str| {
        let tensor = header.tensors.iter().find(|t| t.name == name).unwrap();
        let start = (header.data_offset + tensor.offset) as usize;
        &file[start..start + tensor.bytes as usize]
    };
    let manifest = manifest_of(&[&header], |_, t| Some(*blake3::hash(data(&t.name)).as_bytes())).unwrap();
    println!("{} {:#?}", manifest.id(), Facts::of(&manifest));
    let all = LayerRange::new(0, manifest.layers()).unwrap();
    for layers in all.split(parts.parse().unwrap()).unwrap() {
        let plan = slice::plan(&manifest, layers, layers.start() == 0, layers.end() == all.end()).unwrap();
        let path = PathBuf::from(out).join(format!("{layers}.gguf"));
        let mut slice = fs::File::create(&path).unwrap();
        for segment in &plan.segments {
            match segment {
                Segment::Inline(bytes) => slice.write_all(bytes).unwrap(),
                Segment::Zeros { len } => slice.write_all(&vec![0; *len as usize]).unwrap(),
                Segment::Tensor { name, offset, len } => {
                    slice.write_all(&data(name)[*offset as usize..(offset + len) as usize]).unwrap();
                }
            }
        }
        println!("{}: {} bytes", path.display(), plan.size);
    }
}
