//! Every way for a body to be wrong, and what a right one turns into.

use serde_json::{Value, json};

use super::*;
use crate::ipc::message::MESSAGES_COUNT_MAX;

const CANARY: &str = "canary-7f3a";

fn chat(extra: &Value) -> Result<Request, ApiError> {
    parse(Endpoint::Chat, with(json!({"messages": [{"role": "user", "content": "hi"}]}), extra))
}

fn completion(extra: &Value) -> Result<Request, ApiError> {
    parse(Endpoint::Completion, with(json!({"prompt": "hi"}), extra))
}

fn with(mut body: Value, extra: &Value) -> &'static [u8] {
    let fields = extra.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    Box::leak(body.to_string().into_bytes().into_boxed_slice())
}

/// The status, the named field and the rule of a refusal.
fn refusal(result: Result<Request, ApiError>) -> (u16, Option<String>, String) {
    let error = result.err().expect("the body should be refused");
    let body = error.body();
    let text = body["error"]["message"].as_str().unwrap().to_owned();
    (error.status().as_u16(), body["error"]["param"].as_str().map(str::to_owned), text)
}

fn refused_field(result: Result<Request, ApiError>) -> String {
    let (status, param, _) = refusal(result);
    assert_eq!(status, 400);
    param.expect("the field should be named")
}

fn messages_of(request: &Request) -> Value {
    let Prompt::Chat { messages_json, .. } = &request.prompt else { panic!("not a chat") };
    serde_json::from_str(messages_json).unwrap()
}

#[test]
fn a_bare_chat_has_openai_defaults() {
    let request = chat(&json!({})).unwrap();
    assert_eq!(request.model, "");
    assert_eq!((request.max_tokens, request.stream), (0, None));
    assert!(request.stop.is_empty());
    let sampling = Sampling { temperature: 1.0, ..Sampling::greedy() };
    assert_eq!(request.sampling, sampling);
    assert_eq!(completion(&json!({})).unwrap().max_tokens, 16);
}

#[test]
fn every_value_reaches_its_field() {
    let request = chat(&json!({
        "model": "m", "stream": true, "stream_options": {"include_usage": true},
        "max_completion_tokens": 7, "temperature": 0, "top_p": 0.5, "top_k": 40, "min_p": 0.05,
        "repetition_penalty": 1.5, "presence_penalty": -2, "frequency_penalty": 2,
        "logit_bias": {"5": -100, "0": 1.5}, "seed": 9_223_372_036_854_775_807_u64,
        "stop": ["a", "b"], "n": 1, "logprobs": false, "user": "u", "metadata": {"a": "b"},
        "store": false, "response_format": {"type": "text"}, "tool_choice": "auto",
        "parallel_tool_calls": true, "modalities": ["text"], "service_tier": "auto",
    }))
    .unwrap();
    assert_eq!((request.model.as_str(), request.max_tokens), ("m", 7));
    let options = StreamOptions { include_usage: true, include_obfuscation: true };
    assert_eq!(request.stream, Some(options));
    assert_eq!(request.stop, ["a", "b"]);
    let sampling = Sampling {
        temperature: 0.0,
        top_k: 40,
        top_p: 0.5,
        min_p: 0.05,
        repeat_penalty: 1.5,
        presence_penalty: -2.0,
        frequency_penalty: 2.0,
        logit_bias: vec![(5, -100.0), (0, 1.5)],
        seed: Some(0x7fff_ffff_ffff_ffff),
    };
    assert_eq!(request.sampling, sampling);
}

#[test]
fn null_is_absent() {
    for name in COMMON.iter().chain(UNSUPPORTED).chain(WITHOUT_EFFECT) {
        assert!(chat(&json!({*name: null})).is_ok(), "{name}");
    }
}

#[test]
fn every_bad_number_is_refused_by_name() {
    let numbers = [
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repeat_penalty",
        "repetition_penalty",
        "presence_penalty",
        "frequency_penalty",
        "max_tokens",
        "n",
        "seed",
    ];
    let wholes = ["top_k", "max_tokens", "n", "seed"];
    let common = ["-2.5", "1e308", "-1e308", "9223372036854775808", "\"1\"", "true", "[]", "{}"];
    for endpoint in [Endpoint::Chat, Endpoint::Completion] {
        let prompt = match endpoint {
            Endpoint::Chat => r#""messages":[{"role":"user","content":"hi"}]"#,
            Endpoint::Completion => r#""prompt":"hi""#,
        };
        let try_value = |name: &str, value: &str| {
            let body = format!("{{{prompt},\"{name}\":{value}}}");
            assert_eq!(refused_field(parse(endpoint, body.as_bytes())), name, "{value}");
        };
        for name in numbers {
            for value in common.into_iter().chain(["NaN", "Infinity", "1e999", "0x1"]) {
                try_value(name, value);
            }
            if name != "seed" {
                try_value(name, "2147483648");
            }
        }
        for name in wholes {
            for value in ["-1", "1.5", "-9223372036854775808", "18446744073709551616"] {
                try_value(name, value);
            }
        }
        for (name, value) in [("max_tokens", "0"), ("n", "0"), ("n", "2"), ("top_p", "1.01")] {
            try_value(name, value);
        }
    }
    assert_eq!(refused_field(chat(&json!({"max_completion_tokens": -1}))), "max_completion_tokens");
    assert_eq!(refused_field(completion(&json!({"best_of": 2}))), "best_of");
}

#[test]
fn every_wrong_type_is_refused_by_name() {
    for (name, values) in [
        ("model", vec![json!(1), json!([])]),
        ("stream", vec![json!("true"), json!(1)]),
        ("stop", vec![json!(1), json!([1]), json!({}), json!(""), json!([""])]),
        ("logit_bias", vec![json!([1]), json!({"x": 1}), json!({"1": "1"}), json!({"+1": 1})]),
        ("logit_bias", vec![json!({"01": 1}), json!({"4294967296": 1}), json!({"1": 101})]),
        ("stream_options", vec![json!({}), json!(1)]),
        ("logprobs", vec![json!(true), json!(0), json!("yes")]),
    ] {
        for value in values {
            assert_eq!(refused_field(chat(&json!({name: value.clone()}))), name, "{value}");
        }
    }
    for (name, value) in [
        ("tools", json!({})),
        ("tool_choice", json!("required")),
        ("tool_choice", json!({"type": "function", "function": {"name": "f"}})),
        ("tool_choice", json!(1)),
        ("response_format", json!({"type": "json_object"})),
        ("response_format", json!({"type": "json_schema", "json_schema": {}})),
        ("response_format", json!("text")),
        ("modalities", json!(["audio"])),
        ("store", json!(true)),
    ] {
        assert_eq!(refused_field(chat(&json!({name: value.clone()}))), name, "{value}");
    }
    for value in [json!(1), json!([]), json!(["a", "b"]), json!([1, 2]), json!([[1]]), json!({})] {
        assert_eq!(refused_field(completion(&json!({"prompt": value.clone()}))), "prompt");
    }
    assert_eq!(refused_field(completion(&json!({"echo": true}))), "echo");
    assert_eq!(refused_field(completion(&json!({"prompt": null}))), "prompt");
}

#[test]
fn limits_on_lengths_are_exact() {
    let stops = |count: usize, len: usize| json!({"stop": vec!["x".repeat(len); count]});
    assert!(chat(&stops(STOP_COUNT_MAX, STOP_LEN_MAX_BYTES)).is_ok());
    assert_eq!(refused_field(chat(&stops(STOP_COUNT_MAX + 1, 1))), "stop");
    assert_eq!(refused_field(chat(&stops(1, STOP_LEN_MAX_BYTES + 1))), "stop");
    let model = |len: usize| json!({"model": "x".repeat(len)});
    assert!(chat(&model(NAME_LEN_MAX_BYTES)).is_ok());
    assert_eq!(refused_field(chat(&model(NAME_LEN_MAX_BYTES + 1))), "model");
    let bias = |count: usize| {
        let map: serde_json::Map<_, _> = (0..count).map(|i| (i.to_string(), json!(1))).collect();
        json!({"logit_bias": map})
    };
    assert!(chat(&bias(LOGIT_BIAS_COUNT_MAX)).is_ok());
    assert_eq!(refused_field(chat(&bias(LOGIT_BIAS_COUNT_MAX + 1))), "logit_bias");
    let messages =
        |count: usize| json!({"messages": vec![json!({"role": "user", "content": "x"}); count]});
    assert!(chat(&messages(MESSAGES_COUNT_MAX)).is_ok());
    assert_eq!(refused_field(chat(&messages(MESSAGES_COUNT_MAX + 1))), "messages");
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    for name in UNSUPPORTED {
        for result in [chat(&json!({*name: 1})), completion(&json!({*name: [CANARY]}))] {
            let (status, param, _) = refusal(result);
            assert_eq!((status, param.as_deref()), (400, Some(*name)));
        }
    }
}

#[test]
fn an_unknown_field_is_refused_by_its_place() {
    let (status, param, text) = refusal(chat(&json!({CANARY: 1})));
    assert_eq!((status, param), (400, None));
    assert!(text.contains("number 2"), "{text}");
    let inner = json!({"messages": [{"role": "user", "content": "x", CANARY: 1}]});
    assert_eq!(refused_field(chat(&inner)), "messages[0]");
    // A field of the other endpoint is as unknown as any.
    assert_eq!(refusal(completion(&json!({"messages": []}))).1, None);
    assert_eq!(refusal(chat(&json!({"prompt": "x"}))).1, None);
}

#[test]
fn messages_are_checked_and_rebuilt() {
    let request = chat(&json!({
        "messages": [
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "refusal": null, "annotations": [], "tool_calls": [
                {"id": "c1", "type": "function", "index": 0,
                 "function": {"name": "f", "arguments": "{\"x\": [1, 2]}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    }))
    .unwrap();
    let want = json!([
        {"role": "system", "content": "d"},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": [1, 2]}}}]},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    ]);
    assert_eq!(messages_of(&request), want);
    let Prompt::Chat { tools_json, messages_count, .. } = &request.prompt else { panic!() };
    assert_eq!(*messages_count, 4);
    assert!(tools_json.contains("\"parameters\""));
    let hidden = chat(&json!({
        "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none",
    }));
    let Prompt::Chat { tools_json, .. } = hidden.unwrap().prompt else { panic!() };
    assert_eq!(tools_json, "");
}

#[test]
fn bad_messages_are_refused_by_place() {
    let call = |function: Value| json!([{"role": "assistant", "tool_calls": [{"type": "function", "function": function}]}]);
    for (messages, want) in [
        (json!(null), "messages"),
        (json!("x"), "messages"),
        (json!([]), "messages"),
        (json!(["x"]), "messages[0]"),
        (json!([{"content": "x"}]), "messages[0].role"),
        (json!([{"role": CANARY, "content": "x"}]), "messages[0].role"),
        (json!([{"role": 1, "content": "x"}]), "messages[0].role"),
        (json!([{"role": "user"}]), "messages[0].content"),
        (json!([{"role": "user", "content": null}]), "messages[0].content"),
        (json!([{"role": "user", "content": 5}]), "messages[0].content"),
        (json!([{"role": "user", "content": []}]), "messages[0].content"),
        (
            json!([{"role": "user", "content": [{"type": "image_url"}]}]),
            "messages[0].content[0].type",
        ),
        (json!([{"role": "user", "content": [{"text": "x"}]}]), "messages[0].content[0].type"),
        (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
        (json!([{"role": "user", "content": "x", "name": "n".repeat(129)}]), "messages[0].name"),
        (json!([{"role": "user", "content": "x", "audio": {}}]), "messages[0].audio"),
        (json!([{"role": "user", "content": "x", "tool_calls": [1]}]), "messages[0].tool_calls"),
        (json!([{"role": "assistant", "tool_calls": [1]}]), "messages[0].tool_calls[0]"),
        (
            call(json!({"name": "f", "arguments": "{"})),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            call(json!({"name": "f", "arguments": "[]"})),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (call(json!({"arguments": "{}"})), "messages[0].tool_calls[0].function.name"),
    ] {
        assert_eq!(refused_field(chat(&json!({"messages": messages.clone()}))), want, "{messages}");
    }
    for (tool, want) in [
        (json!(1), "tools[0]"),
        (json!({"type": "web_search"}), "tools[0].type"),
        (json!({"type": "function"}), "tools[0].function"),
        (json!({"type": "function", "function": {}}), "tools[0].function.name"),
        (
            json!({"type": "function", "function": {"name": "f", "strict": true}}),
            "tools[0].function.strict",
        ),
    ] {
        assert_eq!(refused_field(chat(&json!({"tools": [tool]}))), want);
    }
}

#[test]
fn contradictions_are_refused() {
    let both = json!({"max_tokens": 1, "max_completion_tokens": 2});
    assert_eq!(refused_field(chat(&both)), "max_completion_tokens");
    let both = json!({"repeat_penalty": 1.1, "repetition_penalty": 1.2});
    assert_eq!(refused_field(chat(&both)), "repetition_penalty");
    assert!(chat(&json!({"max_tokens": 2, "max_completion_tokens": 2})).is_ok());
    let unstreamed = json!({"stream": false, "stream_options": {"include_usage": true}});
    assert_eq!(refused_field(chat(&unstreamed)), "stream_options");
}

#[test]
fn no_refusal_repeats_the_clients_text() {
    let text = json!(CANARY);
    let names = [COMMON, CHAT, COMPLETION, UNSUPPORTED].concat().into_iter().chain([CANARY]);
    for name in names {
        for value in [text.clone(), json!([text]), json!({CANARY: text}), json!([{CANARY: text}])] {
            for result in [chat(&json!({name: value})), completion(&json!({name: value}))] {
                let Err(error) = result else { continue };
                let shown = format!("{error} {error:?} {}", error.body());
                assert!(!shown.contains(CANARY), "{shown}");
            }
        }
    }
    for body in [CANARY.to_owned(), format!("{{\"{CANARY}\":"), format!("{{\"a\":{CANARY}}}")] {
        let error = parse(Endpoint::Chat, body.as_bytes()).err().unwrap();
        assert!(!format!("{error} {error:?}").contains(CANARY));
    }
}
