//! HTTP by hand, for what no client library would do: hang up, lie about its host, send too much.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
};

use serde_json::Value;

/// An answer: status, and everything after the headers.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// Sends a request to `url` (`http://ip:port`), and stays on the line.
pub(crate) fn send(url: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> BufReader<TcpStream> {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let host = headers.iter().find(|(name, _)| *name == "host").map_or(address, |(_, value)| value);
    let others = headers.iter().filter(|(name, _)| *name != "host").map(|(name, value)| format!("{name}: {value}\r\n"));
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {}\r\n{}\r\n",
        body.len(),
        others.collect::<String>()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // Who is refused for its length may be cut off before it has sent all of it.
    let _ = stream.write_all(body.as_bytes());
    BufReader::new(stream)
}

/// Reads an answer's status and headers.
pub(crate) fn status(stream: &mut BufReader<TcpStream>) -> u16 {
    head(stream).0
}

/// The same, with the headers as they are.
pub(crate) fn head(stream: &mut BufReader<TcpStream>) -> (u16, String) {
    let (mut line, mut headers) = (String::new(), String::new());
    stream.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
    while line.trim() != "" {
        line.clear();
        stream.read_line(&mut line).unwrap();
        headers += &line;
    }
    (status, headers)
}

/// A body that comes in chunks; panics where it breaks off.
fn chunks(stream: &mut BufReader<TcpStream>) -> String {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let len = usize::from_str_radix(line.trim(), 16).unwrap_or_else(|error| panic!("{error}: {line:?}"));
        let mut chunk = vec![0; len + 2];
        stream.read_exact(&mut chunk).unwrap();
        body.extend_from_slice(&chunk[..len]);
        if len == 0 {
            return String::from_utf8(body).unwrap();
        }
    }
}

/// Asks, and reads all of the answer.
pub(crate) fn ask(url: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut stream = send(url, method, path, headers, body);
    let (status, headers) = head(&mut stream);
    if headers.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return Answer { status, body: chunks(&mut stream) };
    }
    let mut body = String::new();
    stream.read_to_string(&mut body).unwrap();
    Answer { status, body }
}

/// A value of the gateway's metrics.
pub(crate) fn metric(url: &str, name: &str) -> f64 {
    let text = ask(url, "GET", "/metrics", &[], "").body;
    let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).split(' ').nth(1).unwrap().parse().unwrap()
}
