//! Tokenizer and grammars in their child.
#![allow(clippy::unwrap_used)]

mod common;

use common::small_model;
use potluck_engine::{EngineProgram, GrammarSource, VocabularyClient, VocabularyError, vocabulary::GRAMMARS_MAX};

async fn client() -> VocabularyClient {
    let program = EngineProgram { program: env!("CARGO_BIN_EXE_potluck-engine-child").into(), args: Vec::new() };
    VocabularyClient::start(program, small_model().vocabulary()).await.unwrap()
}

async fn text(client: &VocabularyClient, tokens: &[u32]) -> String {
    String::from_utf8(client.pieces(tokens, true).await.unwrap().concat()).unwrap()
}

#[tokio::test]
async fn text_survives_tokens_and_back() {
    let client = client().await;
    let info = client.info();
    assert_eq!((info.tokens, info.begin, info.end), (49_152, Some(1), Some(2)));
    assert!(info.ends.contains(&2) && info.control.contains(&1));
    for sample in ["Hello, world", " déjà vu — 日本語 🦀", "", "a\n\n\tb", "<|im_start|>user"] {
        let plain = client.tokenize(sample, false, false).await.unwrap();
        assert_eq!(text(&client, &plain).await, sample);
        assert!(!plain.contains(&1), "a user's text has no control token: {sample}");
    }
    let parsed = client.tokenize("<|im_start|>user", false, true).await.unwrap();
    assert_eq!(parsed[0], 1);
    assert_eq!(client.pieces(&parsed, false).await.unwrap()[0], b"", "control tokens are no text");
    assert_eq!(client.pieces(&[u32::MAX], true).await.unwrap(), [b""], "what is no token has no bytes");
}

#[tokio::test]
async fn a_grammar_allows_what_follows_it_and_nothing_else() {
    let client = client().await;
    let yes = client.tokenize("yes", false, false).await.unwrap();
    let grammar = client.open_grammar(GrammarSource::Gbnf(r#"root ::= "yes" | "no""#.into())).await.unwrap();
    let all = client.allowed(grammar, None).await.unwrap();
    let allowed: Vec<u32> = (0..49_152).filter(|&token| all[token as usize]).collect();
    assert!(allowed.contains(&yes[0]) && allowed.len() < 10, "{allowed:?}");
    for &token in &allowed {
        let piece = text(&client, &[token]).await;
        assert!("yes".starts_with(&piece) || "no".starts_with(&piece), "{piece}");
    }
    assert_eq!(client.allowed(grammar, Some(&[yes[0], 2, u32::MAX])).await.unwrap(), [true, false, false]);
    assert_eq!(client.accept(grammar, 2).await, Err(VocabularyError::NotAllowed(2)), "llama.cpp would abort");
    for &token in &yes {
        client.accept(grammar, token).await.unwrap();
    }
    assert_eq!(client.allowed(grammar, Some(&[2, yes[0]])).await.unwrap(), [true, false], "only the end is left");
    client.close_grammar(grammar).await.unwrap();
    assert_eq!(client.allowed(grammar, None).await, Err(VocabularyError::UnknownGrammar(grammar)));
}

#[tokio::test]
async fn a_json_schema_is_a_grammar() {
    let client = client().await;
    let schema =
        r#"{"type":"object","properties":{"n":{"type":"integer"}},"required":["n"],"additionalProperties":false}"#;
    let grammar = client.open_grammar(GrammarSource::JsonSchema(schema.into())).await.unwrap();
    for token in client.tokenize(r#"{"n": 42}"#, false, false).await.unwrap() {
        client.accept(grammar, token).await.unwrap();
    }
    assert_eq!(client.allowed(grammar, Some(&[2])).await.unwrap(), [true]);
    let other = client.open_grammar(GrammarSource::JsonSchema(schema.into())).await.unwrap();
    let bad = client.tokenize(r#"["#, false, false).await.unwrap();
    assert_eq!(client.accept(other, bad[0]).await, Err(VocabularyError::NotAllowed(bad[0])));
}

#[tokio::test]
async fn hostile_grammars_are_errors_and_the_next_call_works() {
    let client = client().await;
    let open = |text: String| client.open_grammar(GrammarSource::Gbnf(text));
    for text in ["", "root", "root ::= missing", "root ::= root", "\0", "root ::= [z-a"] {
        assert!(open(text.into()).await.is_err(), "`{text}` is no grammar");
    }
    assert!(matches!(open("(".repeat(1 << 20)).await, Err(VocabularyError::TooMuch { .. })));
    // Every alternative branches: refused, out of memory or out of time, but an answer; and the next call gets one.
    let exploding = "root ::= ((((\"a\"{0,2000}){0,2000}){0,2000}){0,2000})".to_owned();
    let _ = open(exploding).await.map_err(|error| assert!(!error.to_string().is_empty()));
    assert!(client.open_grammar(GrammarSource::JsonSchema("not json".into())).await.is_err());
    assert_eq!(client.tokenize("still here", false, false).await.unwrap().len(), 2);
}

#[tokio::test]
async fn open_grammars_are_bounded() {
    let client = client().await;
    let source = || GrammarSource::Gbnf(r#"root ::= "a""#.into());
    for _ in 0..GRAMMARS_MAX {
        client.open_grammar(source()).await.unwrap();
    }
    assert!(matches!(client.open_grammar(source()).await, Err(VocabularyError::TooMuch { .. })));
}
