//! Targets for the programs and tables that turn text into tokens: they come with a model, and run on what its users write.

use std::sync::Arc;

use super::{Memory, Target, unsealed};
use crate::bail;
use crate::error::Result;
use crate::model::chat::{ChatInput, ChatTemplate};
use crate::model::detokenizer::{Detokenizer, token_bytes};
use crate::model::tokenizer::Tokenizer;

/// Parts of an input end at this byte.
const END: u8 = 0;

/// Part `n` of the input as text.
fn part(data: &[u8], n: usize) -> Result<&str> {
    match std::str::from_utf8(data.split(|&byte| byte == END).nth(n).unwrap_or_default()) {
        Ok(text) => Ok(text),
        Err(e) => bail!(InvalidArgument, "part {n}: {e}"),
    }
}

/// Target for chat templates and the JSON that they get: a template, messages, tools, arguments.
pub const CHAT_TEMPLATE: Target = Target {
    name: "chat_template",
    read: |data| {
        let special = vec![("bos_token", "<s>".to_owned()), ("eos_token", "</s>".to_owned())];
        let template = ChatTemplate::compile("fuzz".to_owned(), part(data, 0)?, special)?;
        let input = ChatInput {
            messages: part(data, 1)?,
            tools: part(data, 2)?,
            arguments: part(data, 3)?,
            ..ChatInput::default()
        };
        let text = template.render(&input)?;
        let open = ChatInput { continue_final_message: true, ..input };
        if let Ok(longer) = template.render(&open) {
            assert!(longer.len() <= MADE_MAX, "a prompt of {} bytes", longer.len());
        }
        assert!(text.len() <= MADE_MAX, "a prompt of {} bytes", text.len());
        Ok(())
    },
    seeds: || {
        let cases = include_bytes!("../../tests/text/chat_templates.json");
        let cases: Vec<serde_json::Value> = serde_json::from_slice(cases).unwrap_or_default();
        let field = |case: &serde_json::Value, name: &str| case[name].as_str().unwrap_or_default().to_owned();
        let input = |case| ["template", "messages", "tools", "arguments"].map(|name| field(case, name)).join("\0");
        let mut seeds: Vec<Vec<u8>> = cases.iter().map(|case| input(case).into_bytes()).collect();
        seeds.extend(PROGRAMS.iter().map(|program| [program.as_bytes(), b"\0", HELLO].concat()));
        seeds
    },
    reseal: unsealed,
    words: &JINJA,
    memory: Memory { per_byte: 4096, fixed: 192 << 20 },
    cost: 4,
};

/// The longest prompt that the budget of a rendering allows.
const MADE_MAX: usize = 80 << 20;

const HELLO: &[u8] = b"[{\"role\": \"user\", \"content\": \"x\"}, {\"role\": \"assistant\", \"content\": \"y\"}]";

/// Programs that make much of little, each within what a rendering may take.
const PROGRAMS: [&str; 8] = [
    "{% set a = namespace(x='ab') %}{% for i in range(9) %}{% set a.x = a.x ~ a.x %}{% endfor %}{{ a.x }}",
    "{% set s = 'x' * 99 %}{{ range(99)|map('string')|map('replace', '', s)|list|length }}",
    "{{ ['a', 'b']|join('c' * 9)|indent(9)|replace('c', 'dd') }}{{ '%9d|%-9s'|format(3, 'x') }}",
    "{% macro f(n) %}{% if n > 0 %}[{{ f(n - 1) }}]{% endif %}{% endmacro %}{{ f(9) }}",
    "{{ messages|tojson(indent=9) }}{{ messages|map(attribute='content')|list|batch(3, 'x')|list }}",
    "{% for m in messages %}{{ m.content.split('')|reverse|list }}{{ m.content.title().strip() }}{% endfor %}",
    "{% filter upper %}{{ {'a': [1, 2], 'b': {'c': 1.5}}|dictsort|string }}{% endfilter %}{{ 'abc'[::-1] }}",
    "{% macro g() %}{{ caller(1) }}{% endmacro %}{% call(x) g() %}{{ x }}{% endcall %}{{ strftime_now('%F') }}",
];

const JINJA: [&[u8]; 60] = [
    b"{% for i in range(99999) %}",
    b"{% for i in messages recursive %}",
    b"{% endfor %}",
    b"{{ loop(messages) }}",
    b"{% if true %}",
    b"{% else %}",
    b"{% endif %}",
    b"{% set s = s ~ s %}",
    b"{% set s = [s, s] %}",
    b"{% set s = s + s %}",
    b"{% set s = 'x' * 999999 %}",
    b"{% set s = [1] * 999999 %}",
    b"{% set a.x = a.x ~ a.x %}",
    b"{% set a.x = [a.x] %}",
    b"{% set a = namespace(x='ab') %}",
    b"{% set s %}",
    b"{% endset %}",
    b"{% macro f() %}",
    b"{% endmacro %}",
    b"{{ f() }}",
    b"{% call f() %}",
    b"{% endcall %}",
    b"{% filter indent(999999) %}",
    b"{% filter upper %}",
    b"{% endfilter %}",
    b"{{ s }}",
    b"{{ s ~ s }}",
    b"{{ messages }}",
    b"{{ messages|tojson(indent=64) }}",
    b"{{ (s, s, s, s)|join(s) }}",
    b"{{ '%1000000000d' % 1 }}",
    b"|format(s, s)",
    b"|replace('', s)",
    b"|map('replace', '', s)",
    b"|map('join', s)",
    b"|map('indent', 999999)",
    b"|map('format', s)",
    b"|map('list')",
    b"|list",
    b"|tojson",
    b"|string",
    b"|join(s)",
    b"|indent(999999)",
    b"|batch(999999, s)",
    b"|slice(999999)",
    b"|sort",
    b"|unique",
    b"|dictsort",
    b"|groupby('role')",
    b"|sum",
    b"|select('in', s)",
    b".split('')",
    b".join(messages)",
    b".replace('', s)",
    b"[::-1]",
    b" * 999999",
    b" ** 99",
    b" % (s, s)",
    b"\0",
    b"\0[{\"role\": \"user\", \"content\": \"x\"}]",
];

/// Target for tokenizer.json, and the text that it is used on.
pub const TOKENIZER: Target = Target {
    name: "tokenizer",
    read: |data| {
        let tokenizer = Arc::new(Tokenizer::parse("fuzz", part(data, 0)?)?);
        let text = part(data, 1)?;
        let plain = tokenizer.tokenize(text, true, false);
        let tokens = tokenizer.tokenize(text, false, true)?;
        let mut detokenizer = Detokenizer::new(tokenizer.clone(), 1000, true);
        for &token in tokens.iter().chain(plain.iter().flatten()).chain(&[0, 3, 999]) {
            let _ = detokenizer.push(token);
            let _ = token_bytes(&tokenizer, 1000, token);
        }
        detokenizer.flush();
        Ok(())
    },
    seeds: || {
        let text = "\0Hello  wörld <|im_end|></s> 12345\n\t👩‍👩‍👧 don't";
        let files: [&[u8]; 3] = [
            include_bytes!("../../tests/text/byte_level.json"),
            include_bytes!("../../tests/text/byte_fallback.json"),
            include_bytes!("../../tests/text/metaspace.json"),
        ];
        let mut seeds: Vec<Vec<u8>> = files.iter().map(|file| [file, text.as_bytes()].concat()).collect();
        seeds.extend(TABLES.iter().map(|table| [table.as_bytes(), text.as_bytes()].concat()));
        seeds
    },
    reseal: unsealed,
    words: &TABLE_WORDS,
    memory: Memory { per_byte: 4096, fixed: 64 << 20 },
    cost: 4,
};

/// Small tokenizers of the other kinds, so that mutations are near what matters.
const TABLES: [&str; 4] = [
    r#"{"version":"1.0","added_tokens":[{"id":3,"content":"</s>","single_word":false,"lstrip":true,"rstrip":false,"normalized":true,"special":true}],"normalizer":{"type":"Sequence","normalizers":[{"type":"NFKC"},{"type":"Lowercase"},{"type":"StripAccents"},{"type":"Replace","pattern":{"Regex":"l+"},"content":"ll"},{"type":"Strip","strip_left":true,"strip_right":true}]},"pre_tokenizer":{"type":"Split","pattern":{"Regex":"(a|b)+|\\s{1,3}(?=x)"},"behavior":"MergedWithPrevious","invert":false},"decoder":{"type":"WordPiece","prefix":"+","cleanup":true},"model":{"type":"WordPiece","unk_token":"u","continuing_subword_prefix":"+","max_input_chars_per_word":100,"vocab":{"u":0,"h":1,"+e":2}}}"#,
    r#"{"version":"1.0","pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},{"type":"Punctuation","behavior":"Isolated"},{"type":"UnicodeScripts"},{"type":"FixedLength","length":5}]},"post_processor":{"type":"BertProcessing","sep":["s",1],"cls":["c",2]},"decoder":{"type":"CTC","pad_token":"p","word_delimiter_token":"|","cleanup":true},"model":{"type":"WordLevel","unk_token":"u","vocab":{"u":0,"s":1,"c":2,"hello":3}}}"#,
    r#"{"version":"1.0","normalizer":{"type":"Prepend","prepend":"a"},"decoder":{"type":"BPEDecoder","suffix":"</w>"},"model":{"type":"Unigram","unk_id":0,"byte_fallback":false,"vocab":[["u",0.0],["h",-1.5],["el",-2.5],["lo",-3]]}}"#,
    r#"{"version":"1.0","model":{"type":"BPE","dropout":null,"unk_token":"u","continuing_subword_prefix":"+","end_of_word_suffix":"/","fuse_unk":true,"byte_fallback":true,"ignore_merges":true,"vocab":{"u":0,"h":1,"+e":2,"h+e":3,"he":4,"<0x41>":5},"merges":["h +e"]}}"#,
];

const TABLE_WORDS: [&[u8]; 40] = [
    b"0",
    b"-1",
    b"1e308",
    b"4294967295",
    b"18446744073709551615",
    b"null",
    b"true",
    b"\"\"",
    b"[]",
    b"{}",
    b",",
    b"[",
    b"{",
    b"\0",
    b"\"(?:(?:a{30}){30}){10}\"",
    b"\"(a*)*b\"",
    b"\"(?=(\\\\w+))\\\\1:\"",
    b"\"\\\\p{L}{1000}\"",
    b"\"(?<=a{1,1000})b\"",
    b"\"Sequence\"",
    b"\"ByteLevel\"",
    b"\"Metaspace\"",
    b"\"Replace\"",
    b"\"Split\"",
    b"\"Precompiled\"",
    b"\"Unigram\"",
    b"\"WordPiece\"",
    b"\"BPE\"",
    b"\"TemplateProcessing\"",
    b"\"RobertaProcessing\"",
    b"\"BertNormalizer\"",
    b"\"NFKD\"",
    b"\"CTC\"",
    b"\"Fuse\"",
    b"\"Strip\"",
    b"\"precompiled_charsmap\":\"AAAA\"",
    b"\"Contiguous\"",
    b"\"Removed\"",
    b"\"always\"",
    b"{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"aaaaaaaaaaaaaaaa\"}",
];
