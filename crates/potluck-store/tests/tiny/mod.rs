//! A tiny model in every shape in which models are found on disk.
#![allow(unreachable_pub, dead_code, reason = "each test file uses its own part")]

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use potluck_core::{MetaArray, MetaValue, TensorType};
use potluck_model::{
    gguf::{self, TensorSpec},
    types,
};
use potluck_store::Locations;
use tempfile::TempDir;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// Layers of the tiny model.
pub const LAYERS: u32 = 4;

/// A folder for one test, and the places of other programs in it.
pub struct Home {
    pub folder: TempDir,
    pub locations: Locations,
}

impl Home {
    pub fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        let locations = Locations { ollama: at("ollama"), huggingface: at("hub"), extracted: at("extracted") };
        Self { folder, locations }
    }

    /// Writes a file, with the folders above it; its path.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Two parts, as `llama-gguf-split` writes them: the first has all metadata.
    pub fn write_parts(&self, folder: &str) {
        let tensors = tensors();
        let (first, second) = tensors.split_at(3);
        let split = |no: u16| {
            [("split.no", no), ("split.count", 2)].map(|(key, n)| (key.to_owned(), MetaValue::U16(n))).into_iter()
        };
        let total = ("split.tensors.count".to_owned(), MetaValue::I32(tensors.len() as i32));
        let head: Vec<_> = metadata().into_iter().chain(split(0)).chain([total.clone()]).collect();
        let tail: Vec<_> = split(1).chain([total]).collect();
        self.write(&format!("{folder}/tiny-00001-of-00002.gguf"), &file(&head, first));
        self.write(&format!("{folder}/tiny-00002-of-00002.gguf"), &file(&tail, second));
    }

    pub fn write_ollama(&self, name: &str, tag: &str, digest: &str) {
        let manifest = format!(
            r#"{{"schemaVersion": 2, "config": {{"digest": "sha256:00"}}, "layers": [
                {{"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:11", "size": 1}},
                {{"mediaType": "application/vnd.ollama.image.model", "digest": "{digest}", "size": 2}}]}}"#
        );
        self.write(&format!("ollama/manifests/registry.ollama.ai/library/{name}/{tag}"), manifest.as_bytes());
        self.write(&format!("ollama/blobs/{}", digest.replace(':', "-")), &model());
    }

    #[cfg(unix)]
    pub fn write_huggingface(&self, repository: &str) {
        let blob = self.write(&format!("hub/{repository}/blobs/abc"), &model());
        self.write(&format!("hub/{repository}/refs/main"), b"r1\n");
        let link = self.folder.path().join(format!("hub/{repository}/snapshots/r1/tiny.gguf"));
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        fs::create_dir_all(self.folder.path().join(format!("hub/{repository}/snapshots/r0"))).unwrap();
        std::os::unix::fs::symlink(blob, link).unwrap();
    }

    pub fn write_wheel(&self, name: &str, method: CompressionMethod) -> PathBuf {
        let path = self.folder.path().join(name);
        let mut wheel = ZipWriter::new(fs::File::create(&path).unwrap());
        let options = SimpleFileOptions::default().compression_method(method);
        for (member, bytes) in [("tiny/__init__.py", b"pass".to_vec()), ("tiny/tiny.gguf", model())] {
            wheel.start_file(member, options).unwrap();
            wheel.write_all(&bytes).unwrap();
        }
        wheel.finish().unwrap();
        path
    }
}

/// Bytes below a folder.
pub fn bytes_below(folder: &Path) -> u64 {
    let files = walkdir::WalkDir::new(folder).into_iter().flatten().filter(|entry| entry.file_type().is_file());
    files.map(|entry| entry.metadata().unwrap().len()).sum()
}

pub fn metadata() -> Vec<(String, MetaValue)> {
    let tokens = (0..70).map(|n| format!("t{n}").into_bytes().into()).collect();
    [
        ("general.architecture", MetaValue::String("llama".into())),
        ("general.license", MetaValue::String("mit".into())),
        ("llama.block_count", MetaValue::U32(LAYERS)),
        ("llama.embedding_length", MetaValue::U32(64)),
        ("llama.context_length", MetaValue::U32(128)),
        ("llama.attention.head_count", MetaValue::U32(4)),
        ("tokenizer.ggml.tokens", MetaValue::Array(MetaArray::String(tokens))),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

fn tensors() -> Vec<TensorSpec> {
    let spec = |name: String, kind: TensorType, shape: &[u64]| TensorSpec { name, kind, shape: shape.to_vec() };
    let layers = (0..LAYERS).flat_map(|layer| {
        [
            spec(format!("blk.{layer}.attn_norm.weight"), types::F32, &[64]),
            spec(format!("blk.{layer}.ffn_up.weight"), types::Q8_0, &[64, 40]),
        ]
    });
    [spec("token_embd.weight".into(), types::Q4_0, &[64, 70]), spec("output_norm.weight".into(), types::F32, &[64])]
        .into_iter()
        .chain(layers)
        .collect()
}

/// A tensor's bytes: its own, wherever it is written.
pub fn data(name: &str, bytes: u64) -> Vec<u8> {
    let mut data = vec![0; bytes as usize];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut data);
    data
}

fn file(metadata: &[(String, MetaValue)], tensors: &[TensorSpec]) -> Vec<u8> {
    let mut file = gguf::write(metadata, tensors).unwrap();
    for tensor in tensors {
        file.extend(data(&tensor.name, types::tensor_bytes(tensor.kind, &tensor.shape).unwrap()));
        file.resize(file.len().next_multiple_of(32), 0);
    }
    file
}

/// The tiny model as one file.
pub fn model() -> Vec<u8> {
    file(&metadata(), &tensors())
}
