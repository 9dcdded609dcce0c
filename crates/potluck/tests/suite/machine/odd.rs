//! A server of a test's own that lends a model `odd`, and says what it is told to, sense or not.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};

use crate::machine::listen;

/// What it answers a request.
#[derive(Clone)]
pub(crate) enum Says {
    /// This, with a status.
    Refusal(u16, Value),
    /// A stream of this, and its end.
    Stream(String),
    /// A stream of this, and then silence until whoever asked is gone.
    Silence(String),
    /// A stream of one line, for as long as somebody reads.
    Endless,
}

/// The server. Its threads end with the test.
pub(crate) struct Odd {
    pub(crate) url: String,
    site: Arc<Site>,
}

struct Site {
    says: Mutex<Says>,
    asked: Mutex<Vec<Value>>,
    /// Requests whose asker was gone before it had all of the answer.
    left: AtomicUsize,
}

impl Odd {
    pub(crate) fn start() -> Self {
        let says = Mutex::new(Says::Refusal(500, json!({})));
        let site = Arc::new(Site { says, asked: Mutex::default(), left: AtomicUsize::new(0) });
        let served = site.clone();
        let url = listen(move |stream| served.answer(stream));
        Self { url, site }
    }

    /// From now on.
    pub(crate) fn says(&self, says: Says) {
        *self.site.says.lock().unwrap() = says;
    }

    /// What it was asked last.
    pub(crate) fn asked(&self) -> Value {
        self.site.asked.lock().unwrap().last().cloned().unwrap_or_default()
    }

    /// How often it was asked.
    pub(crate) fn times(&self) -> usize {
        self.site.asked.lock().unwrap().len()
    }

    /// How often whoever asked has left.
    pub(crate) fn left(&self) -> usize {
        self.site.left.load(Ordering::SeqCst)
    }
}

impl Site {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let (mut line, mut path, mut length) = (String::new(), String::new(), 0);
        while reader.read_line(&mut line)? > 0 && line.trim() != "" {
            let lower = line.trim().to_ascii_lowercase();
            match lower.strip_prefix("content-length:") {
                Some(value) => length = value.trim().parse().unwrap_or(0),
                None if path.is_empty() => path = line.split(' ').nth(1).unwrap_or_default().to_owned(),
                None => {}
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        if path == "/v1/models" {
            return whole(&mut stream, 200, &json!({ "object": "list", "data": [{ "id": "odd" }] }));
        }
        self.asked.lock().unwrap().push(serde_json::from_slice(&body)?);
        let says = self.says.lock().unwrap().clone();
        let text = match &says {
            Says::Refusal(status, object) => return whole(&mut stream, *status, object),
            Says::Stream(text) | Says::Silence(text) => text.as_str(),
            Says::Endless => "data: {",
        };
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")?;
        stream.write_all(text.as_bytes())?;
        match says {
            Says::Silence(_) => while matches!(reader.read(&mut [0]), Ok(1..)) {},
            Says::Endless => while stream.write_all(&[b'x'; 1 << 12]).is_ok() {},
            Says::Refusal(..) | Says::Stream(_) => return Ok(()),
        }
        self.left.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

fn whole(stream: &mut TcpStream, status: u16, object: &Value) -> std::io::Result<()> {
    let body = object.to_string();
    let head = format!(
        "HTTP/1.1 {status} So\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(format!("{head}{body}").as_bytes())
}

/// Events of a stream, each a chunk with this delta, or a chunk of its own where it has choices or an error.
pub(crate) fn chunks(parts: &[Value]) -> String {
    let chunk = |part: &Value| match part {
        Value::String(finish) => json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": finish }] }),
        part if part.get("choices").or(part.get("error")).is_some() => part.clone(),
        delta => json!({ "choices": [{ "index": 0, "delta": delta, "finish_reason": null }] }),
    };
    parts.iter().map(|part| format!("data: {}\n\n", chunk(part))).collect()
}
