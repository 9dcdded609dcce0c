//! Models from the web, over real HTTP: a server that answers as Hugging Face, as Ollama's registry, and as anybody.
#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod tiny;

use std::{
    fs,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Redirect, Response},
    routing::get,
};
use data_encoding::HEXLOWER;
use potluck_pull::{Address, Coming, PullError, Web};
use potluck_store::{Catalogue, Locations, Source, StoreError};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tiny::tiny_model;
use tokio::net::TcpListener;

const TOKEN: &str = "hf_secret";
const COMMIT: &str = "c0ffee";

fn sha256(bytes: &[u8]) -> String {
    HEXLOWER.encode(Sha256::digest(bytes).as_slice())
}

/// What the server has, and what it was asked for.
#[derive(Default)]
struct Site {
    model: Vec<u8>,
    /// What it announces of the model.
    digest: String,
    /// How often it breaks off in the middle of a transfer.
    breaks: Mutex<usize>,
    /// The first byte of each transfer.
    starts: Mutex<Vec<usize>>,
    /// What was shown to the other host.
    shown: Mutex<Vec<Option<String>>>,
    url: Mutex<String>,
}

type Here = State<Arc<Site>>;

fn token(headers: &HeaderMap) -> Option<String> {
    headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned())
}

impl Site {
    /// The file, or what is left of it; breaks off if it is to.
    fn file(&self, headers: &HeaderMap) -> Response {
        let tag = "\"v1\"";
        let asked = headers.get(header::RANGE).map(|range| range.to_str().unwrap());
        let start = asked.filter(|_| headers.get(header::IF_RANGE).is_some_and(|value| value == tag));
        let start: usize = start.map_or(0, |range| range[6..range.len() - 1].parse().unwrap());
        self.starts.lock().unwrap().push(start);
        let rest = Bytes::from(self.model[start..].to_vec());
        let mut breaks = self.breaks.lock().unwrap();
        let body = if *breaks > 0 {
            *breaks -= 1;
            let half = rest.slice(..rest.len() / 2);
            let parts = [Ok(half), Err(std::io::Error::other("the line is cut"))];
            Body::from_stream(n0_future::stream::iter(parts))
        } else {
            Body::from(rest.clone())
        };
        let range = format!("bytes {start}-{}/{}", self.model.len() - 1, self.model.len());
        let status = if start > 0 { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
        let headers = [
            (header::ETAG, tag.to_owned()),
            (header::CONTENT_RANGE, range),
            (header::CONTENT_LENGTH, rest.len().to_string()),
        ];
        (status, headers, body).into_response()
    }
}

async fn list(State(site): Here, headers: HeaderMap) -> Response {
    if token(&headers) != Some(format!("Bearer {TOKEN}")) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let file = |name: &str| {
        json!({ "rfilename": name, "size": site.model.len(),
        "lfs": { "sha256": site.digest, "size": site.model.len() } })
    };
    let files = [json!({ "rfilename": "README.md" }), file("tiny-Q8_0.gguf"), file("tiny-Q4_K_M.gguf")];
    axum::Json(json!({ "sha": COMMIT, "siblings": files })).into_response()
}

/// As Hugging Face does: the file itself is at another host.
async fn resolve(State(site): Here, headers: HeaderMap) -> Response {
    assert_eq!(token(&headers), Some(format!("Bearer {TOKEN}")));
    let other = site.url.lock().unwrap().replace("127.0.0.1", "localhost");
    Redirect::temporary(&format!("{other}/cdn")).into_response()
}

async fn cdn(State(site): Here, headers: HeaderMap) -> Response {
    site.shown.lock().unwrap().push(token(&headers));
    site.file(&headers)
}

async fn manifest(State(site): Here) -> Response {
    let text = b"MIT".as_slice();
    axum::Json(json!({
        "schemaVersion": 2,
        "config": { "digest": format!("sha256:{}", sha256(text)), "size": text.len() },
        "layers": [
            { "mediaType": "application/vnd.ollama.image.license", "digest": format!("sha256:{}", sha256(text)), "size": text.len() },
            { "mediaType": "application/vnd.ollama.image.model", "digest": format!("sha256:{}", site.digest), "size": site.model.len() },
        ],
    }))
    .into_response()
}

async fn blob(State(site): Here, Path(digest): Path<String>, headers: HeaderMap) -> Response {
    if digest == format!("sha256:{}", site.digest) { site.file(&headers) } else { "MIT".into_response() }
}

/// Never ends, and does not say so.
async fn endless() -> Response {
    let more = n0_future::stream::repeat(Ok::<_, std::convert::Infallible>(Bytes::from_static(&[7; 4_096])));
    Body::from_stream(more).into_response()
}

/// A server with a model, and a machine that asks it.
struct Test {
    site: Arc<Site>,
    url: String,
    dir: TempDir,
    web: Web,
}

impl Test {
    async fn new(breaks: usize, lies: bool) -> Self {
        let model = tiny_model(7);
        let digest = if lies { sha256(b"another") } else { sha256(&model) };
        let site = Arc::new(Site { model, digest, breaks: Mutex::new(breaks), ..Site::default() });
        let app = Router::new()
            .route("/api/models/org/tiny/revision/main", get(list))
            .route("/org/tiny/resolve/c0ffee/{file}", get(resolve))
            .route("/cdn", get(cdn))
            .route("/v2/library/tiny/manifests/latest", get(manifest))
            .route("/v2/library/tiny/blobs/{digest}", get(blob))
            .route("/files/endless.gguf", get(endless))
            .route("/files/tiny.gguf", get(async |State(site): Here, headers: HeaderMap| site.file(&headers)))
            .with_state(site.clone());
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
        site.url.lock().unwrap().clone_from(&url);
        tokio::spawn(async { axum::serve(listener, app).await.unwrap() });
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        let places = Locations { ollama: at("ollama"), huggingface: at("hub"), extracted: at("extracted") };
        let web = Web::new(&url, Some(TOKEN.into()), places, at("downloads")).unwrap();
        Self { site, url, dir, web }
    }

    async fn get(&self, text: &str) -> Result<Source, PullError> {
        let mut last = (0, 0);
        let (address, mut progress) =
            (Address::of(text).unwrap(), |coming: Coming| last = (coming.all.done, coming.all.total));
        let got = self.web.get(&address, &mut |_| Ok(()), &mut progress).await;
        if got.is_ok() {
            assert!(last.0 == last.1 && last.1 >= self.site.model.len() as u64, "{last:?}");
        }
        got
    }

    /// The model is what it should be, and found again without the web.
    fn check(&self, source: &Source, text: &str) {
        let catalogue = Catalogue::open(self.dir.path().join("models")).unwrap();
        let entry = catalogue.add(source, None, &mut |_| {}).unwrap().entry;
        let original = self.dir.path().join("original.gguf");
        fs::write(&original, &self.site.model).unwrap();
        let at = |name: &str| self.dir.path().join(name);
        let places = Locations { ollama: at("ollama"), huggingface: at("hub"), extracted: at("extracted") };
        let same = catalogue.add(&places.find(original.to_str().unwrap()).unwrap(), None, &mut |_| {}).unwrap();
        assert_eq!(same.entry.id, entry.id);
        if !text.starts_with("http") {
            assert_eq!(places.find(text).unwrap().parts, source.parts, "the other program's store knows it as {text}");
        }
    }
}

#[tokio::test]
async fn a_repository_s_model_lands_in_hugging_face_s_cache() {
    let test = Test::new(0, false).await;
    let source = test.get("hf:org/tiny").await.unwrap();
    assert_eq!(source.name, "tiny-Q4_K_M");
    test.check(&source, "hf:org/tiny");
    assert_eq!(*test.site.shown.lock().unwrap(), [None], "the token is for its own host alone");
    test.get("hf:org/tiny:Q4_K_M").await.unwrap();
    assert_eq!(test.site.starts.lock().unwrap().len(), 1, "what is here is not fetched again");
    let several = test.get("hf:org/tiny:Q2").await;
    assert!(matches!(&several, Err(PullError::Several { names, .. }) if names.len() == 2), "{several:?}");
    assert!(matches!(test.get("hf:org/absent").await, Err(PullError::Missing(_))));
    let places = Locations { ollama: "x".into(), huggingface: "x".into(), extracted: "x".into() };
    let stranger = Web::new(&test.url, None, places, "x".into()).unwrap();
    let refused = stranger.get(&Address::of("hf:org/tiny").unwrap(), &mut |_| Ok(()), &mut |_| {}).await;
    assert!(matches!(refused, Err(PullError::NotAllowed(_))), "{refused:?}");
}

#[tokio::test]
async fn an_image_of_a_registry_lands_in_ollama_s_store() {
    let test = Test::new(0, false).await;
    let name = format!("{}/library/tiny", test.url.trim_start_matches("http://"));
    let source = test.get(&format!("ollama:{name}")).await.unwrap();
    assert_eq!(source.name, "tiny:latest");
    let catalogue = Catalogue::open(test.dir.path().join("models")).unwrap();
    assert_eq!(catalogue.add(&source, None, &mut |_| {}).unwrap().entry.name, "tiny:latest");
    assert!(test.dir.path().join("ollama/blobs").join(format!("sha256-{}", sha256(b"MIT"))).is_file());
}

#[tokio::test]
async fn a_transfer_that_breaks_off_goes_on_where_it_was() {
    let test = Test::new(2, false).await;
    let address = format!("{}/files/tiny.gguf", test.url);
    let source = test.get(&address).await.unwrap();
    test.check(&source, &address);
    let starts = test.site.starts.lock().unwrap().clone();
    assert_eq!(starts.len(), 3, "{starts:?}");
    assert!(starts[0] == 0 && 0 < starts[1] && starts[1] < starts[2], "{starts:?}");
}

#[tokio::test]
async fn what_is_not_what_was_announced_is_not_kept() {
    let test = Test::new(0, true).await;
    let refused = test.get("hf:org/tiny").await;
    assert!(matches!(refused, Err(PullError::Digest(_))), "{refused:?}");
    assert!(!test.dir.path().join("hub/models--org--tiny/blobs").join(&test.site.digest).exists());
    assert!(!test.dir.path().join("hub/models--org--tiny/snapshots").exists());
}

#[tokio::test]
async fn a_file_without_an_end_is_refused_and_one_process_fetches_at_a_time() {
    let test = Test::new(0, false).await;
    let endless = test.get(&format!("{}/files/endless.gguf", test.url)).await;
    assert!(matches!(endless, Err(PullError::Answer { .. })), "{endless:?}");
    let address = format!("{}/files/tiny.gguf", test.url);
    let (first, second) = tokio::join!(test.get(&address), test.get(&address));
    let source = first.unwrap();
    assert!(matches!(second, Err(PullError::Store(StoreError::Locked { .. }))), "{second:?}");
    test.check(&source, &address);
}

#[tokio::test]
async fn room_is_asked_for_before_the_first_byte_and_once() {
    let test = Test::new(1, false).await;
    let registry = test.url.trim_start_matches("http://");
    let model = test.site.model.len() as u64;
    let asked = Mutex::new(Vec::new());
    let full = |bytes| {
        asked.lock().unwrap().push(bytes);
        Err(StoreError::NoRoom { wanted: bytes, short: 1, quota: None, in_use: vec![], removable: vec![] })
    };
    for text in [format!("ollama:{registry}/library/tiny"), format!("{}/files/tiny.gguf", test.url)] {
        let address = Address::of(&text).unwrap();
        let refused = test.web.get(&address, &mut |bytes| full(bytes), &mut |_| {}).await;
        assert!(matches!(refused, Err(PullError::Store(StoreError::NoRoom { .. }))), "{refused:?}");
        assert!(asked.lock().unwrap().pop().is_some_and(|bytes| bytes >= model), "{text}");
        assert!(asked.lock().unwrap().is_empty(), "{text}");
        let partial = test.web.folder(&address).join("tiny.gguf.incomplete");
        assert!(fs::metadata(partial).map_or(0, |file| file.len()) == 0, "nothing was written");
        *test.site.breaks.lock().unwrap() = 1;
        let granted = |bytes| {
            asked.lock().unwrap().push(bytes);
            Ok(())
        };
        test.web.get(&address, &mut |bytes| granted(bytes), &mut |_| {}).await.unwrap();
        assert!(
            asked.lock().unwrap().pop().is_some() && asked.lock().unwrap().is_empty(),
            "a line that broke asks no more"
        );
    }
}
