//! Chat templates: the texts of transformers, and templates that fail, nest or want too much.

use cleave::error::Status::{InvalidArgument, Unsupported};
use cleave::model::chat::{ChatInput, ChatTemplate};
use serde_json::json;

use crate::cases;

#[test]
fn chat_templates_match_transformers() {
    for case in cases("chat_templates.json") {
        let special = vec![("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())];
        let place = case["name"].as_str().unwrap().to_owned();
        let template = ChatTemplate::compile(place, case["template"].as_str().unwrap(), special).unwrap();
        let text = |key: &str| case[key].as_str().unwrap_or_default();
        let input = ChatInput {
            messages: text("messages"),
            tools: text("tools"),
            arguments: text("arguments"),
            no_generation_prompt: case["add_generation_prompt"] == json!(false),
            continue_final_message: case["continue_final_message"] == json!(true),
        };
        let rendered = template.render(&input).unwrap_or_else(|e| panic!("{}: {e}", case["name"]));
        assert_eq!(rendered, case["expected"].as_str().unwrap(), "{} {}", case["name"], text("arguments"));
    }
}

fn compile(source: &str) -> ChatTemplate {
    ChatTemplate::compile("chat_template.jinja".into(), source, Vec::new()).unwrap()
}

pub fn chat(messages: &str) -> ChatInput<'_> {
    ChatInput { messages, ..ChatInput::default() }
}

pub const HELLO: ChatInput<'static> = ChatInput {
    messages: "[{\"role\": \"user\", \"content\": \"x\"}]",
    tools: "",
    arguments: "",
    no_generation_prompt: false,
    continue_final_message: false,
};

#[test]
fn template_failures() {
    let render = |source: &str| compile(source).render(&HELLO).unwrap_err();
    let e = render("{{ raise_exception('roles must alternate') }}");
    assert_eq!((e.status, e.message.as_str()), (InvalidArgument, "chat_template.jinja: roles must alternate"));
    let e = render("{% macro f() %}{{ raise_exception('inner') }}{% endmacro %}{{ f() }}");
    assert_eq!((e.status, e.message.as_str()), (InvalidArgument, "chat_template.jinja: inner"));
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% set x = 1 %}";
    let e = render(&format!("{endless}{}", "{% endfor %}".repeat(3)));
    assert!(e.message.contains("steps"), "{e}");
    let e = render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
    assert_eq!(e.status, InvalidArgument, "{e}");
    let e = render("{{ messages.nothing.at_all }}");
    assert!(e.message.contains("chat_template.jinja"), "{e}");
    let e = render("{% include 'chat' %}");
    assert!(e.message.contains("no other templates"), "{e}");
    let e = ChatTemplate::compile("chat_template.jinja".into(), "{% if %}", Vec::new()).err().unwrap();
    assert_eq!(e.status, Unsupported);
    assert!(e.message.contains("chat_template.jinja") && e.message.contains("line 1"), "{e}");
}

/// Each of these inputs once took gigabytes of memory and could have ended the process.
#[test]
fn templates_are_refused_memory() {
    let doubled = "{% set a %}{{ a }}{{ a }}{% endset %}".repeat(40);
    let raw = "r".repeat(60_000);
    for source in [
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s | list }}",
        "{% set n = namespace(s=[]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
        "{% set n = namespace(s=[]) %}{% for i in range(99999) %}{% set n.s = n.s + [('a' * 99999) | list] %}{% endfor %}",
        &format!("{{% set a %}}xx{{% endset %}}{doubled}"),
        &format!("{{% set a %}}{{% for i in range(99999) %}}{raw}{{% endfor %}}{{% endset %}}"),
        &format!("{{% for i in range(99999) %}}{raw}{{% endfor %}}"),
        &format!("{{% block a %}}{{% for i in range(99999) %}}{raw}{{% endfor %}}{{% endblock %}}"),
        &format!("{{{{ ['x' * 99999999{}] | length }}}}", ", 'y' * 99999999".repeat(60)),
        "{{ ([1] * 1000000000) | list | length }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ 'a\nb' | indent(1000000000) }}",
        "{{ 'a\nb' | indent(width=1000000000) }}",
        "{{ [1] | batch(10000000000) | list }}",
        "{{ [1] | slice(10000000000) | list }}",
        "{{ [1] | batch(1000000000, 1) | list }}",
        "{{ (['x' * 1000000] * 1000000) | join('x') }}",
        "{{ ('x' * 1000000).join(['x'] * 1000000) }}",
        "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
        "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
        "{{ (['a' * 9999999] * 99) | map('list') | list | length }}",
        "{{ ([[1] * 999] * 999) | tojson(indent=64) }}",
        "{{ ['%1000000000d'] | map('format', 1) | list }}",
        "{{ ['a\nb'] | map('indent', 1000000000) | list }}",
        "{{ [[1]] | map('batch', 10000000000) | list }}",
        "{{ range(30000) | map('string') | map('replace', '', 'x' * 400000) | list | length }}",
        "{{ [range(30000) | map('string') | list] | map('map', 'replace', '', 'x' * 400000) | list | length }}",
        "{{ '%*d' | format(1000000000, 1) }}",
        "{{ '%-*d' | format(-1000000000, 1) }}",
    ] {
        let e = compile(source).render(&HELLO).unwrap_err();
        assert!(e.status == InvalidArgument && e.message.contains("more memory"), "{source:.200}: {e}");
    }
}

/// Deeply nested sources and values once overflowed the stack, which no handler survives.
#[test]
fn templates_that_nest_deeply() {
    let refused = |source: &str| {
        let e = ChatTemplate::compile("chat_template.jinja".into(), source, Vec::new()).err().unwrap();
        assert!(e.status == Unsupported && e.message.contains("chat_template.jinja"), "{source:.40}: {e}");
    };
    for piece in ["+a", "~a", ".a", "|e", "[0]", "()", " and a", " if a else a"] {
        refused(&format!("{{{{ a{} }}}}", piece.repeat(200_000)));
    }
    for piece in ["not ", "-", "(", "[", "{1:"] {
        refused(&format!("{{{{ {}a }}}}", piece.repeat(100_000)));
    }
    refused(&"{% if a %}".repeat(50_000));
    refused(&format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(40_000)));
    refused(&" ".repeat(1 << 20));
    // The deepest source that is allowed.
    let deep = format!("{{% if a %}}{}{{% else %}}done{{% endif %}}", "{% elif a %}".repeat(8000));
    assert_eq!(compile(&deep).render(&HELLO).unwrap(), "done");
    let deep = format!("{{{{ 1{} }}}}", "+1".repeat(1000));
    assert_eq!(compile(&deep).render(&HELLO).unwrap(), "1001");
    // A value that gets one level deeper with every step of the program.
    let nest = "{% set n = namespace(l=[]) %}{% for i in range(99999) %}{% for j in range(99) %}{% set n.l = [n.l] %}";
    let e = compile(&format!("{nest}{{% endfor %}}{{% endfor %}}")).render(&HELLO).unwrap_err();
    assert!(e.message.contains("steps"), "{e}");
    let e =
        compile(&format!("{}{{{{ n.l }}}}", nest.replace("99999", "9") + "{% endfor %}{% endfor %}")).render(&HELLO);
    assert!(e.unwrap_err().message.contains("nested too deeply"));
}

#[test]
fn tools_and_arguments_are_checked() {
    let template = compile("{{ tools | tojson }}{{ a | tojson }}{{ add_generation_prompt }}");
    let input = ChatInput { tools: "[{\"b\": 1, \"a\": 2}]", arguments: "{\"a\": [1.5]}", ..HELLO };
    assert_eq!(template.render(&input).unwrap(), "[{\"b\": 1, \"a\": 2}][1.5]True");
    assert_eq!(
        template.render(&ChatInput { tools: "null", arguments: "{\"a\": null}", ..HELLO }).unwrap(),
        "nullnullTrue"
    );
    let deep = "[".repeat(10_000);
    for (tools, arguments, needle) in [
        ("{}", "", "tools = {}"),
        ("[1]", "", "tools = [1]"),
        ("[", "", "tools: malformed"),
        (&deep, "", "tools: malformed"),
        ("", "[]", "arguments = []"),
        ("", "x", "arguments: malformed"),
        ("", &deep, "arguments: malformed"),
        ("", "{\"messages\": []}", "messages"),
        ("", "{\"before +\": 1}", "before +"),
        ("", "{\"\": 1}", "template variable"),
        ("", "{\"documents\": [1]}", "documents = [1]"),
    ] {
        let e = template.render(&ChatInput { tools, arguments, ..HELLO }).unwrap_err();
        assert!(e.status == InvalidArgument && e.message.contains(needle), "{needle}: {e}");
    }
    let open = |messages| ChatInput { continue_final_message: true, ..chat(messages) };
    let fixed = compile("fixed");
    for messages in ["[]", "[{\"role\": \"a\"}]", "[{\"role\": \"a\", \"content\": [{\"type\": \"image\"}]}]"] {
        assert_eq!(fixed.render(&open(messages)).unwrap_err().status, InvalidArgument, "{messages}");
    }
    let e = fixed.render(&open("[{\"role\": \"a\", \"content\": \"b\"}]")).unwrap_err();
    assert!(e.message.contains("cannot be continued"), "{e}");
}

#[test]
fn messages_are_checked() {
    let template = compile("{{ messages[0].role }}");
    for (json, needle) in [
        ("", "JSON"),
        ("{}", "list"),
        ("[1]", "messages[0]"),
        ("[{\"role\": \"user\", \"content\": \"\"}, {\"content\": \"x\"}]", "messages[1]: role"),
        ("[{\"role\": 1, \"content\": \"x\"}]", "messages[0]: role"),
        ("[{\"role\": \"user\", \"content\": 7}]", "content = 7"),
        (&"[".repeat(10_000), "JSON"),
    ] {
        let e = template.render(&chat(json)).unwrap_err();
        assert_eq!(e.status, InvalidArgument, "{json}");
        assert!(e.message.contains(needle), "{needle} is not in {e}");
    }
    for good in [
        "[{\"role\": \"u\", \"content\": null}]",
        "[{\"role\": \"u\"}]",
        "[{\"role\": \"u\", \"content\": [{\"type\": \"text\"}]}]",
    ] {
        assert_eq!(template.render(&chat(good)).unwrap(), "u");
    }
}
