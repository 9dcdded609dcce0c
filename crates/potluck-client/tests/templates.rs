//! Prompts as the templates of well-known models make them, and templates that are up to no good.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use potluck_client::{
    ChatTemplate, Conversation, Message, RenderOptions, Role, SpecialTokens, TEMPLATE_BYTES_MAX, TemplateError,
};
use proptest::prelude::*;

/// 26 July 2024.
const NOW: i64 = 1_721_952_000;

fn special() -> SpecialTokens {
    SpecialTokens { begin: "<s>".into(), end: "</s>".into() }
}

fn message(role: Role, content: &str) -> Message {
    Message { role, content: content.into() }
}

fn talk() -> Vec<Message> {
    vec![message(Role::User, " Hi! "), message(Role::Assistant, "Hello."), message(Role::User, "2+2?")]
}

fn render(source: &str, messages: &[Message]) -> Result<String, TemplateError> {
    ChatTemplate::new(source)?.render(messages, &special(), &RenderOptions::at(NOW))
}

#[test]
fn the_small_model_is_asked_as_it_was_trained() {
    let manifest = common::small_model().manifest;
    let template = ChatTemplate::of(&manifest).unwrap();
    assert!(!template.is_fallback());
    let mut conversation = Conversation::new(template, SpecialTokens::of(&manifest));
    conversation.user("Hi!");
    let options = RenderOptions::at(NOW);
    assert_eq!(
        conversation.prompt(&options).unwrap(),
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n\
         <|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    );
    conversation.system("Be brief.");
    conversation.assistant("Hello.");
    assert_eq!(
        conversation.prompt(&RenderOptions { add_generation_prompt: false, ..options }).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n\
         <|im_start|>assistant\nHello.<|im_end|>\n"
    );
    let special = SpecialTokens::of(&manifest);
    assert_eq!((special.begin.as_str(), special.end.as_str()), ("<|im_start|>", "<|im_end|>"));
}

#[test]
fn llama_3() {
    let prompt = render(include_str!("templates/llama3.jinja"), &talk()).unwrap();
    assert_eq!(
        prompt,
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\
         Today Date: 26 Jul 2024\n\n<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
}

#[test]
fn gemma_and_a_system_message_that_it_does_not_take() {
    let source = include_str!("templates/gemma.jinja");
    let mut conversation = Conversation::new(ChatTemplate::new(source).unwrap(), special());
    conversation.set_messages(talk());
    let expected = "<start_of_turn>user\nHi!<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n\
                    <start_of_turn>user\n2+2?<end_of_turn>\n<start_of_turn>model\n";
    assert_eq!(conversation.prompt(&RenderOptions::at(NOW)).unwrap(), format!("<s>{expected}"));
    conversation.system("Be brief.");
    let with_system = expected.replacen("user\nHi!", "user\nBe brief.\n\n Hi!", 1);
    assert_eq!(conversation.prompt(&RenderOptions::at(NOW)).unwrap(), format!("<s>{with_system}"));
    conversation.clear();
    conversation.assistant("I begin.");
    let refused = conversation.prompt(&RenderOptions::at(NOW)).unwrap_err();
    assert!(matches!(&refused, TemplateError::Refused(words) if words.contains("System role")), "{refused}");
}

#[test]
fn mistral() {
    let messages = [vec![message(Role::System, "Be brief.")], talk()].concat();
    let prompt = render(include_str!("templates/mistral.jinja"), &messages).unwrap();
    assert_eq!(prompt, "<s>[INST]  Hi! [/INST] Hello.</s>[INST] Be brief.\n\n2+2?[/INST]");
    let twice = [message(Role::User, "a"), message(Role::User, "b")];
    let refused = render(include_str!("templates/mistral.jinja"), &twice).unwrap_err();
    assert_eq!(refused.code(), "template_refused");
    assert!(refused.to_string().contains("must alternate"), "{refused}");
}

#[test]
fn qwen_3_with_tools_and_without_thinking() {
    let template = ChatTemplate::new(include_str!("templates/qwen3.jinja")).unwrap();
    let mut options = RenderOptions::at(NOW);
    let tools = serde_json::json!([{"name": "sum", "about": "a < b & 'c'", "parameters": {"b": [1, 2], "a": {}}}]);
    options.variables.insert("tools".into(), tools);
    options.variables.insert("enable_thinking".into(), false.into());
    options.variables.insert("messages".into(), "not this".into());
    let messages = [message(Role::User, "Hi"), message(Role::Assistant, "<think>\nwell\n</think>\n\nHello")];
    assert_eq!(
        template.render(&messages, &special(), &options).unwrap(),
        "<|im_start|>system\n# Tools\n\n<tools>\n\
         {\"name\": \"sum\", \"about\": \"a < b & 'c'\", \"parameters\": {\"b\": [1, 2], \"a\": {}}}\n</tools><|im_end|>\n\
         <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n\
         <|im_start|>assistant\n<think>\n\n</think>\n\n"
    );
}

#[test]
fn a_model_without_a_template_gets_chatml() {
    let manifest = potluck_core::Manifest::new(Vec::new(), Vec::new());
    let template = ChatTemplate::of(&manifest).unwrap();
    assert!(template.is_fallback());
    let prompt = template.render(&talk()[2..], &special(), &RenderOptions::at(NOW)).unwrap();
    assert_eq!(prompt, "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n");
}

#[test]
fn a_template_without_end_or_bounds_is_stopped() {
    let stopped = [
        "{% for i in range(10000) %}{% for j in range(10000) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxxxxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{{ 'x' * 100000000000 }}",
        "{% for i in range(100000000000) %}{% endfor %}",
    ];
    for source in stopped {
        let error = render(source, &talk()).unwrap_err();
        assert!(matches!(error, TemplateError::Fuel | TemplateError::Failed(_)), "{source}: {error}");
    }
    let nested =
        "{% set ns = namespace(s=['xxxxxxxx']) %}{% for i in range(40) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}";
    for end in ["{{ ns.s | tojson }}", "{{ ns.s }}"] {
        assert!(render(&format!("{nested}{end}"), &talk()).is_err(), "exponential output: {end}");
    }
    let long = " ".repeat(TEMPLATE_BYTES_MAX + 1);
    assert_eq!(render(&long, &talk()), Err(TemplateError::TooLong { bytes: TEMPLATE_BYTES_MAX + 1 }));
    let deep = format!("{}{}", "{% if true %}".repeat(5_000), "{% endif %}".repeat(5_000));
    assert!(render(&deep, &talk()).is_err());
}

#[test]
fn what_fuel_does_not_see_ends_with_time_and_is_not_tried_twice() {
    let source = "{% set ns = namespace(s=['x']) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}";
    let template = ChatTemplate::new(source).unwrap();
    let render = || template.render(&talk(), &special(), &RenderOptions::at(NOW));
    assert_eq!(render(), Err(TemplateError::TimedOut));
    assert_eq!(render(), Err(TemplateError::TimedOut), "and at once: no second thread is lost");
    assert_eq!(TemplateError::TimedOut.code(), "template_timeout", "a program that goes on has to know");
}

#[test]
fn a_prompt_has_a_limit() {
    let messages = vec![message(Role::User, &"x".repeat(1 << 20)); 17];
    let error = render("{% for message in messages %}{{ message.content }}{% endfor %}", &messages).unwrap_err();
    assert_eq!(error, TemplateError::PromptTooLong);
}

#[test]
fn errors_say_where_and_never_what_was_said() {
    let secret = [message(Role::User, "a secret")];
    let syntax = render("line one\n{% if %}", &secret).unwrap_err();
    assert!(matches!(syntax, TemplateError::Syntax(_)) && syntax.to_string().contains("line 2"), "{syntax}");
    for source in ["{{ messages[0].content.no_such_method() }}", "{{ messages[0].content + 1 }}", "{{ messages.x.y }}"]
    {
        let error = render(source, &secret).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }
    let raised = render(&format!("{{{{ raise_exception('{}') }}}}", "y".repeat(2_000)), &secret).unwrap_err();
    assert!(raised.to_string().len() < 500);
}

proptest! {
    #[test]
    fn any_template_ends_without_a_panic(source in "(\\{\\{|\\}\\}|\\{%|%\\}|[a-z'|\\[\\]().+~ 0-9\n-]|for|in|if|set|endfor|endif|messages|range){0,60}") {
        let _ = render(&source, &talk());
    }
}
