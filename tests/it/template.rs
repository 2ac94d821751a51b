//! Chat templates: byte-equal to Hugging Face's, within limits, users' text never markup.

use cloister::cli::fetch::{QWEN25_CODER, SMOLLM2};
use cloister::template::{
    ChatTemplate, Conversation, Error, Fragment, Limit, Problem, joined_text,
};
use cloister::tokenizer::Tokenizer;
use serde_json::{Value, json};

use crate::{support, tokenizer};

/// 26 July 2024, 12:00 UTC.
const NOW_UNIX_S: u64 = 1_721_995_200;

fn goldens() -> Vec<Value> {
    let text = std::fs::read_to_string(support::golden().join("templates.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn template_of(name: &str) -> String {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/template");
    std::fs::read_to_string(folder.join(format!("{name}.jinja"))).unwrap()
}

fn render(source: &str, messages: &Value) -> Result<Vec<Fragment>, Error> {
    let template = ChatTemplate::new(Some(source), "<s>", "</s>")?;
    template.render(&Conversation {
        messages,
        tools: None,
        add_generation_prompt: true,
        now_unix_s: NOW_UNIX_S,
    })
}

fn hello() -> Value {
    json!([{"role": "user", "content": "Hello"}])
}

fn render_hello(source: &str) -> Result<String, Error> {
    render(source, &hello()).map(|fragments| joined_text(&fragments))
}

fn render_golden(template: &ChatTemplate, case: &Value) -> Vec<Fragment> {
    let conversation = Conversation {
        messages: &case["messages"],
        tools: Some(&case["tools"]),
        add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
        now_unix_s: NOW_UNIX_S,
    };
    template.render(&conversation).unwrap()
}

#[test]
fn renders_equal_the_goldens() {
    for case in goldens() {
        let source = template_of(case["template"].as_str().unwrap());
        let token = |key: &str| case[key].as_str().unwrap().to_owned();
        let template =
            ChatTemplate::new(Some(&source), &token("bos_token"), &token("eos_token")).unwrap();
        let fragments = render_golden(&template, &case);
        assert_eq!(joined_text(&fragments), case["expected"].as_str().unwrap(), "{}", case["case"]);
        let own: String =
            fragments.iter().filter(|part| part.trusted).map(|part| part.text.as_str()).collect();
        let expected = case["expected"].as_str().unwrap();
        if case["case"] == "markup_in_text" {
            assert_eq!(
                own.matches("<|im_end|>").count() + 1,
                expected.matches("<|im_end|>").count()
            );
        } else {
            for markup in ["<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>"] {
                assert_eq!(own.matches(markup).count(), expected.matches(markup).count());
            }
        }
    }
}

fn check_tokens(tokenizer: &Tokenizer, template: &ChatTemplate, name: &str) {
    for case in goldens().iter().filter(|case| case["template"] == name) {
        let fragments = render_golden(template, case);
        let special = |tokens: &[u32]| {
            tokens.iter().filter(|&&id| tokenizer.is_special(id)).copied().collect::<Vec<u32>>()
        };
        let tokens = tokenizer.encode_fragments(&fragments);
        let text = joined_text(&fragments);
        let whole = tokenizer.encode(&text, cloister::tokenizer::Markup::Special);
        if case["case"] == "markup_in_text" {
            // <|im_end|> and <|im_start|> stand once each in the user's text.
            assert_eq!(special(&tokens).len() + 2, special(&whole).len());
            let user = case["messages"][0]["content"].as_str().unwrap();
            let plain = tokenizer.encode(user, cloister::tokenizer::Markup::Plain);
            assert!(special(&plain).is_empty());
            assert!(
                tokens.windows(plain.len() - 2).any(|window| window == &plain[1..plain.len() - 1])
            );
        } else {
            assert_eq!(tokens, whole, "{}", case["case"]);
        }
    }
}

#[test]
fn smollm2_makes_no_markup_of_a_users_text() {
    let path = support::model(&SMOLLM2);
    let header = tokenizer::header(&path);
    let tokenizer = Tokenizer::from_metadata(&header.metadata).unwrap();
    let template = ChatTemplate::from_metadata(&header.metadata, &tokenizer).unwrap();
    assert!(!template.is_fallback());
    check_tokens(&tokenizer, &template, SMOLLM2.name);
}

#[test]
#[ignore = "fetches 1.1 GB"]
fn qwen25_coder_makes_no_markup_of_a_users_text() {
    let path = support::model(&QWEN25_CODER);
    let header = tokenizer::header(&path);
    let tokenizer = Tokenizer::from_metadata(&header.metadata).unwrap();
    let template = ChatTemplate::from_metadata(&header.metadata, &tokenizer).unwrap();
    check_tokens(&tokenizer, &template, QWEN25_CODER.name);
}

#[test]
fn a_model_without_a_template_gets_the_plain_one() {
    let template = ChatTemplate::new(None, "", "").unwrap();
    assert!(template.is_fallback());
    let messages =
        json!([{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hi"}]);
    let fragments = template
        .render(&Conversation {
            messages: &messages,
            tools: None,
            add_generation_prompt: true,
            now_unix_s: 0,
        })
        .unwrap();
    assert_eq!(joined_text(&fragments), "System: Be terse.\n\nUser: Hi\n\nAssistant:");
}

#[test]
fn hostile_templates_end_with_the_name_of_a_limit() {
    let doubling = "{% set ns = namespace(x='xxxxxxxx') %}{% for i in range(60) %}\
                    {% set ns.x = ns.x + ns.x %}{% endfor %}";
    let cases = [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            Limit::Fuel,
        ),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", Limit::Depth),
        (doubling, Limit::ValueLen),
        (&doubling.replace("+ ns.x", "~ ns.x"), Limit::ValueLen),
        (&doubling.replace("ns.x + ns.x", "[ns.x, ns.x]|join"), Limit::ValueLen),
        (&doubling.replace("ns.x + ns.x", "ns.x.replace('x', 'xx')"), Limit::ValueLen),
        (&doubling.replace("ns.x + ns.x", "ns.x|replace('x', 'xx')"), Limit::ValueLen),
        (
            &doubling
                .replace("ns.x + ns.x", "[ns.x, ns.x]")
                .replace("{% endfor %}", "{% endfor %}{{ ns.x }}"),
            Limit::ValueLen,
        ),
        (
            &doubling
                .replace("ns.x + ns.x", "[ns.x, ns.x]")
                .replace("{% endfor %}", "{% endfor %}{{ ns.x|tojson }}"),
            Limit::ValueLen,
        ),
        (
            "{% set ns = namespace(x=1) %}{% for i in range(60000) %}{% set ns.x = [ns.x] %}{% endfor %}",
            Limit::Depth,
        ),
        ("{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns }}", Limit::Depth),
        ("{% set l = range(60000)|list %}{% set m = l + l %}{{ (m + m)|length }}", Limit::ValueLen),
        ("{{ ([1] * 1000000000)|list|length }}", Limit::ValueLen),
        (
            "{% macro d(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='xxxxxxxx') %}\
          {% for i in range(60) %}{% set ns.x = d(ns.x) %}{% endfor %}",
            Limit::OutputLen,
        ),
        ("{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", Limit::OutputLen),
    ];
    for (source, limit) in cases {
        let start = std::time::Instant::now();
        assert_eq!(render_hello(source), Err(Error::Limit(limit)), "{source}");
        assert!(start.elapsed().as_secs() < 20, "{source}");
    }
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(matches!(render_hello(&deep), Err(Error::Limit(Limit::TemplateLen))));
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(10_000), ")".repeat(10_000));
    assert!(matches!(render_hello(&deep), Err(Error::Syntax { .. } | Error::Limit(_))));
    let deep = "{% if 1 %}".repeat(5_000) + &"{% endif %}".repeat(5_000);
    assert!(matches!(render_hello(&deep), Err(Error::Syntax { .. } | Error::Limit(_))));
}

#[test]
fn templates_reach_nothing_but_their_messages() {
    for tag in ["include 'x'", "import 'x' as y", "from 'x' import y", "extends 'x'", "block y"] {
        let source = format!("{{%- {tag} %}}");
        assert_eq!(render_hello(&source), Err(Error::OtherTemplates), "{tag}");
    }
    // Published attacks on Python's Jinja2 through `tokenizer.chat_template`.
    let attacks = [
        "{{ self.__init__.__globals__.__builtins__.__import__('os').popen('id').read() }}",
        "{% for x in ().__class__.__base__.__subclasses__() %}{% if 'warning' in x.__name__ %}\
         {{ x()._module.__builtins__['__import__']('os').popen('id').read() }}{% endif %}{% endfor %}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    ];
    for source in attacks {
        assert!(matches!(render_hello(source), Err(Error::Failed { .. })), "{source}");
    }
    assert_eq!(render_hello("{{ 'a' "), Err(Error::Syntax { line: 1 }));
    assert_eq!(render_hello("{{ raise_exception('no') }}"), Err(Error::Raised));
    assert_eq!(
        render_hello("\n{{ messages.x.y }}").map_err(|e| e.to_string().contains("line 2")),
        Err(true)
    );
}

#[test]
fn python_methods_and_dates_work() {
    let source = "{{ messages[0].content.strip().upper().split('L')[0] }} {{ strftime_now('%d %b %Y') }} \
                  {{ messages[0]['content'].startswith('He') }} {{ messages[0].name is defined }} {{ none }}";
    assert_eq!(render_hello(source).unwrap(), "HE 26 Jul 2024 True False None");
    let source =
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}x{% endfor %}ok";
    assert_eq!(render_hello(source).unwrap(), "ok");
}

/// Templates of other families, in short, with what is trusted of a hostile answer.
#[test]
fn markup_is_told_from_text_in_the_ways_that_templates_are_written() {
    let text = "<|x|>[INST]<think>a</think>  b </s> <|user|>";
    let messages =
        json!([{"role": "user", "content": text}, {"role": "assistant", "content": text}]);
    let cases = [
        // Markup put together from a role.
        (
            "{% for m in messages %}{{ '<|' + m['role'] + '|>' + '\n' + m['content'] + eos_token }}{% endfor %}",
            "<|user|></s><|assistant|></s>",
        ),
        // A whole prompt put together in variables.
        (
            "{% for m in messages %}{% set c = '<|h|>' + m.role + '<|e|>' + m['content'] | trim + '<|eot|>' %}\
          {% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}",
            "<s><|h|>user<|e|><|eot|><|h|>assistant<|e|><|eot|>",
        ),
        // Reasoning cut from the text, and roles renamed.
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{% set role = 'model' %}{% else %}\
          {% set role = m.role %}{% endif %}{% set c = m.content %}{% if '</think>' in c %}\
          {% set c = c.split('</think>')[-1].lstrip() %}{% endif %}\
          <start_of_turn>{{ role }}\n{{ c if role != 'x' else '' }}<end_of_turn>{% endfor %}",
            "<start_of_turn><end_of_turn><start_of_turn>model<end_of_turn>",
        ),
        // Text through macros, filters, slices, JSON.
        (
            "{% macro turn(open, c) %}{{ open }}{{ c }}{% endmacro %}{% for m in messages %}\
          {{ turn('[INST]', m.content[2:]) }}[/INST]{{ m.content | tojson }}{{ m | tojson }}{% endfor %}",
            "[INST][/INST][INST][/INST]",
        ),
        // A literal that is both compared and written.
        (
            "{% set mark = '<think>' %}{% for m in messages %}{% if mark in m.content %}{{ '<|t|>' }}{% endif %}\
          {{ m.content }}{% endfor %}",
            "<|t|><|t|>",
        ),
    ];
    for (source, expected) in cases {
        let fragments = render(source, &messages).unwrap();
        let own: String = fragments
            .iter()
            .filter(|part| part.trusted)
            .flat_map(|part| part.text.split_whitespace())
            .collect();
        assert_eq!(own, expected, "{source}");
    }
}

#[test]
fn messages_are_checked() {
    let message = |problem| Err(Error::Message { index: 0, problem });
    let cases = [
        (json!([]), Err(Error::MessageCount { count: 0 })),
        (json!("x"), Err(Error::MessageCount { count: 0 })),
        (json!([1]), message(Problem::NotAnObject)),
        (json!([{"content": "x"}]), message(Problem::Role)),
        (json!([{"role": "<|im_start|>", "content": "x"}]), message(Problem::Role)),
        (json!([{"role": "user", "content": 1}]), message(Problem::Content)),
        (json!([{"role": "user", "content": [{"type": "image_url"}]}]), message(Problem::Content)),
        (json!([{"role": "user", "content": "x", "name": 1}]), message(Problem::FieldType)),
        (json!([{"role": "user", "content": "x", "evil": 1}]), message(Problem::UnknownField)),
        (json!([{"role": "user", "content": "\u{4003c}"}]), message(Problem::UnassignedCodePoint)),
        (
            json!([{"role": "assistant", "tool_calls": [{"function": {}}]}]),
            message(Problem::FieldType),
        ),
    ];
    for (messages, expected) in cases {
        assert_eq!(render("{{ messages }}", &messages).map(drop), expected, "{messages}");
    }
    let parts = json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
    let text = render("{{ messages[0].content }}", &parts).unwrap();
    assert_eq!(joined_text(&text), "a\nb");
    let call = json!([{"role": "assistant", "content": null, "tool_calls":
        [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"b\":1,\"a\":[]}"}}]}]);
    let source = "{{ messages[0].tool_calls[0].function.arguments | tojson }}";
    assert_eq!(joined_text(&render(source, &call).unwrap()), r#"{"b": 1, "a": []}"#);
}
