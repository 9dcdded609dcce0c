//! One model, one id: however it lies on disk, and without a second copy.
#![allow(clippy::unwrap_used)]

mod tiny;

use std::fs;

use potluck_store::{StoreError, import};
use tiny::{Home, bytes_below, model};
use zip::CompressionMethod;

fn id(home: &Home, text: &str) -> Result<String, StoreError> {
    let source = home.locations.find(text)?;
    Ok(import(&source, &mut |_| {})?.manifest.id().to_string())
}

#[cfg(unix)]
#[test]
fn one_id_whichever_way_it_was_added() {
    let home = Home::new();
    home.write("one/tiny.gguf", &model());
    home.write_parts("parts");
    home.write_wheel("stored.whl", CompressionMethod::Stored);
    home.write_wheel("deflated.whl", CompressionMethod::Deflated);
    home.write_ollama("tiny", "latest", &format!("sha256:{}", "ab".repeat(32)));
    home.write_huggingface("models--org--tiny");
    let expected = id(&home, &home.path("one/tiny.gguf")).unwrap();
    for text in [
        &home.path("one"),
        &home.path("parts/tiny-00001-of-00002.gguf"),
        &home.path("parts/tiny-00002-of-00002.gguf"),
        &home.path("parts"),
        &home.path("stored.whl"),
        &home.path("deflated.whl"),
        "ollama:tiny",
        "ollama:tiny:latest",
        "ollama:library/tiny",
        "hf:org/tiny",
        "hf:org/tiny/tiny.gguf",
        &home.path("hub/models--org--tiny"),
    ] {
        assert_eq!(id(&home, text).unwrap(), expected, "{text}");
    }
}

#[test]
fn a_stored_member_is_read_in_place_and_a_compressed_one_is_unpacked_once() {
    let home = Home::new();
    let stored = home.write_wheel("stored.whl", CompressionMethod::Stored);
    let source = home.locations.find(stored.to_str().unwrap()).unwrap();
    assert_eq!((source.name.as_str(), &source.parts[0].path), ("tiny", &stored));
    assert!(source.parts[0].start > 0 && !home.locations.extracted.exists());

    let deflated = home.write_wheel("deflated.whl", CompressionMethod::Deflated);
    let first = home.locations.find(deflated.to_str().unwrap()).unwrap();
    let written = fs::metadata(&first.parts[0].path).unwrap().modified().unwrap();
    let second = home.locations.find(deflated.to_str().unwrap()).unwrap();
    assert_eq!(first, second);
    assert_eq!(fs::metadata(&second.parts[0].path).unwrap().modified().unwrap(), written);
    assert_eq!(bytes_below(&home.locations.extracted), model().len() as u64);
}

#[test]
fn progress_ends_at_the_total() {
    let home = Home::new();
    home.write("tiny.gguf", &model());
    let source = home.locations.find(&home.path("tiny.gguf")).unwrap();
    let mut seen = Vec::new();
    let imported = import(&source, &mut |p| seen.push(p)).unwrap();
    assert!(seen.is_sorted_by_key(|p| p.done));
    assert_eq!(seen.last().map(|p| (p.done, p.total)), Some((imported.manifest.bytes(), imported.manifest.bytes())));
}

#[test]
fn parts_that_are_missing_or_mixed_up_are_refused() {
    let home = Home::new();
    home.write_parts("parts");
    fs::remove_file(home.path("parts/tiny-00002-of-00002.gguf")).unwrap();
    let error = id(&home, &home.path("parts/tiny-00001-of-00002.gguf")).unwrap_err();
    assert!(error.to_string().contains("tiny-00002-of-00002.gguf is missing"), "{error}");
    fs::copy(home.path("parts/tiny-00001-of-00002.gguf"), home.path("parts/tiny-00002-of-00002.gguf")).unwrap();
    let error = id(&home, &home.path("parts")).unwrap_err();
    assert!(error.to_string().contains("is not part 2"), "{error}");
    fs::copy(home.path("parts/tiny-00001-of-00002.gguf"), home.path("parts/alone.gguf")).unwrap();
    let error = id(&home, &home.path("parts/alone.gguf")).unwrap_err();
    assert!(error.to_string().contains("part 1 of 2"), "{error}");
}

#[test]
fn a_folder_holds_one_model_or_says_which_there_are() {
    let home = Home::new();
    home.write("folder/a.gguf", &model());
    home.write("folder/mmproj-a.gguf", &model());
    assert!(id(&home, &home.path("folder")).is_ok(), "a projector is no model");
    home.write("folder/b.gguf", &model());
    assert!(matches!(id(&home, &home.path("folder")), Err(StoreError::Several { names, .. }) if names.len() == 2));
    home.write("empty/readme.txt", b"");
    assert!(matches!(id(&home, &home.path("empty")), Err(StoreError::NoModel { .. })));
    assert!(matches!(id(&home, &home.path("nowhere.gguf")), Err(StoreError::NoModel { .. })));
}

#[test]
fn names_from_strangers_are_no_paths() {
    let home = Home::new();
    home.write("secret", &model());
    home.write_ollama("tiny", "latest", &format!("sha256:{}", "ab".repeat(32)));
    for text in [
        "ollama:../../secret",
        "ollama:..",
        "ollama:a/b/c/d",
        "ollama:tiny:../x",
        "ollama:",
        "hf:../x",
        "hf:a/..",
        "hf:x",
    ] {
        assert!(matches!(home.locations.find(text), Err(StoreError::NoModel { .. })), "{text}");
    }
    let evil =
        r#"{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "sha256:../../../secret"}]}"#;
    home.write("ollama/manifests/registry.ollama.ai/library/evil/latest", evil.as_bytes());
    assert!(
        matches!(home.locations.find("ollama:evil"), Err(StoreError::NoModel { what, .. }) if what.contains("digest"))
    );
    home.write("ollama/manifests/registry.ollama.ai/library/junk/latest", b"{");
    assert!(matches!(home.locations.find("ollama:junk"), Err(StoreError::NoModel { .. })));
}

#[test]
fn what_is_no_model_is_refused() {
    let home = Home::new();
    home.write("text.gguf", b"hello, this is no model");
    assert!(matches!(id(&home, &home.path("text.gguf")), Err(StoreError::Gguf { .. })));
    home.write("short.gguf", &model()[..2000]);
    assert!(matches!(id(&home, &home.path("short.gguf")), Err(StoreError::Gguf { .. })));
    home.write("broken.whl", b"PK\x03\x04");
    assert!(matches!(id(&home, &home.path("broken.whl")), Err(StoreError::NoModel { .. })));
}
