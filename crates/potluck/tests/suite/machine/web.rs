//! A web server of a test's own: files at addresses, from their beginning or from where a client goes on.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    sync::{Arc, Condvar, Mutex},
};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::machine::listen;

#[path = "../../../../potluck-pull/tests/tiny/mod.rs"]
mod tiny;

pub(crate) use tiny::tiny_model;

/// Bytes of a tiny model, more or less.
pub(crate) const TINY_BYTES: u64 = 4_100_000;

/// The server. Its threads end with the test.
pub(crate) struct Web {
    pub(crate) url: String,
    site: Arc<Site>,
}

#[derive(Default)]
struct Site {
    files: Mutex<BTreeMap<String, Arc<Vec<u8>>>>,
    /// Which address was asked for, and from which byte.
    asked: Mutex<Vec<(String, usize)>>,
    /// True while files are sent to their middle only.
    held: Mutex<bool>,
    let_go: Condvar,
}

impl Web {
    pub(crate) fn start() -> Self {
        let site = Arc::new(Site::default());
        let served = site.clone();
        let url = listen(move |stream| served.answer(stream));
        Self { url, site }
    }

    /// Puts a file at `/NAME`; its address.
    pub(crate) fn put(&self, name: &str, bytes: Vec<u8>) -> String {
        self.site.files.lock().unwrap().insert(format!("/{name}"), Arc::new(bytes));
        format!("{}/{name}", self.url)
    }

    /// Puts a model into a registry like Ollama's; its name there, with the host's.
    pub(crate) fn put_image(&self, name: &str, model: Vec<u8>) -> String {
        let digest = |bytes: &[u8]| format!("sha256:{}", data_encoding::HEXLOWER.encode(&Sha256::digest(bytes)));
        let licence = b"MIT".to_vec();
        let layer = |kind: &str, bytes: &[u8]| json!({ "mediaType": format!("application/vnd.ollama.image.{kind}"), "digest": digest(bytes), "size": bytes.len() });
        let manifest = json!({
            "schemaVersion": 2,
            "config": { "digest": digest(&licence), "size": licence.len() },
            "layers": [layer("license", &licence), layer("model", &model)],
        });
        for bytes in [licence, model] {
            self.put(&format!("v2/library/{name}/blobs/{}", digest(&bytes)), bytes);
        }
        self.put(&format!("v2/library/{name}/manifests/latest"), manifest.to_string().into_bytes());
        format!("{}/library/{name}", self.url.trim_start_matches("http://"))
    }

    /// Sends large files to their middle only, until told otherwise.
    pub(crate) fn hold(&self, held: bool) {
        *self.site.held.lock().unwrap() = held;
        self.site.let_go.notify_all();
    }

    /// The first bytes of the transfers whose address contains this.
    pub(crate) fn starts(&self, of: &str) -> Vec<usize> {
        let asked = self.site.asked.lock().unwrap();
        asked.iter().filter(|(path, _)| path.contains(of)).map(|(_, start)| *start).collect()
    }
}

impl Site {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let (mut path, mut start, mut line) = (String::new(), 0, String::new());
        while reader.read_line(&mut line)? > 0 && line.trim() != "" {
            let text = line.trim().to_ascii_lowercase();
            if let Some(rest) = line.strip_prefix("GET ") {
                path = rest.split(' ').next().unwrap_or_default().to_owned();
            } else if let Some(range) = text.strip_prefix("range: bytes=") {
                start = range.trim_end_matches('-').parse().unwrap_or(0);
            }
            line.clear();
        }
        let Some(file) = self.files.lock().unwrap().get(&path).cloned() else {
            return stream.write_all(b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        };
        self.asked.lock().unwrap().push((path, start));
        let rest = &file[start.min(file.len())..];
        let status = if start > 0 { "206 Partial Content" } else { "200 OK" };
        let range = format!("content-range: bytes {start}-{}/{}\r\n", file.len().saturating_sub(1), file.len());
        let length = format!("content-length: {}\r\netag: \"v1\"\r\nconnection: close\r\n", rest.len());
        stream.write_all(format!("HTTP/1.1 {status}\r\n{range}{length}\r\n").as_bytes())?;
        let middle = rest.len() / 2;
        stream.write_all(&rest[..middle])?;
        if rest.len() > 100_000 {
            let held = self.held.lock().unwrap();
            drop(self.let_go.wait_while(held, |held| *held).unwrap());
        }
        stream.write_all(&rest[middle..])
    }
}
