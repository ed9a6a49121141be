#!/usr/bin/env python3
"""Writes tests/text: small tokenizers with what the tokenizers library makes of some texts, and chat templates
with what transformers renders from them. Needs transformers, jinja2 and tokenizers.

    python tools/make_text_cases.py
"""

import json
import os

D = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "text", "")
os.makedirs(D, exist_ok=True)

from tokenizers import (
    Tokenizer,
    models,
    trainers,
    pre_tokenizers,
    decoders,
    normalizers,
    processors,
    AddedToken,
    Regex,
)

text = [
    "Hello world, hello there. The quick brown fox jumps over the lazy dog. 123 456",
    "Grüße aus Köln, naïve café. Привет мир. 你好，世界。 こんにちは 👩‍👩‍👧 🎉 def f(x):\n    return x\n",
] * 20

# byte level, as Qwen and Llama 3
t = Tokenizer(models.BPE(ignore_merges=False))
t.normalizer = normalizers.NFC()
t.pre_tokenizer = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(
            Regex(
                r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            "isolated",
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
t.decoder = decoders.ByteLevel()
t.train_from_iterator(
    text, trainers.BpeTrainer(vocab_size=340, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[])
)
t.add_special_tokens([AddedToken("<|begin|>", special=True), AddedToken("<|im_end|>", special=True)])
t.add_tokens([AddedToken("<think>", special=False, normalized=False)])
b = t.token_to_id("<|begin|>")
t.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", b)])
t.enable_truncation(4)
t.enable_padding(length=64)
t.save(D + "byte_level.json", pretty=False)
# SentencePiece style, as Llama 2
special = ["<unk>", "<s>", "</s>"]
t2 = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
t2.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
t2.train_from_iterator(
    text[:1] * 3,
    trainers.BpeTrainer(
        vocab_size=400, special_tokens=special + [f"<0x{i:02X}>" for i in range(256)], limit_alphabet=60
    ),
)
t2.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
t2.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
js = json.loads(t2.to_str())
js["added_tokens"] = [a for a in js["added_tokens"] if not a["content"].startswith("<0x")]
t2 = Tokenizer.from_str(json.dumps(js))
t2.save(D + "byte_fallback.json", pretty=False)
# neither
t3 = Tokenizer.from_str(t2.to_str())
t3.decoder = decoders.Metaspace()
t3.normalizer = None
t3.pre_tokenizer = pre_tokenizers.Metaspace()
t3.save(D + "metaspace.json", pretty=False)
cases = [
    "",
    "Hello world",
    " leading and  double  spaces ",
    "Grüße, naïve café",
    "你好，世界。",
    "👩‍👩‍👧🎉",
    "Привет мир",
    "def f(x):\n    return x\n\n",
    "a<|im_end|>b<think>c</s>",
    "\u0000\u200b\ufffd x",
]
out = []
for f in ["byte_level", "byte_fallback", "metaspace"]:
    tk = Tokenizer.from_file(D + f + ".json")
    tk.no_truncation()
    tk.no_padding()
    for c in cases:
        e = tk.encode(c)
        p = tk.encode(c, add_special_tokens=False)
        tk.encode_special_tokens = True
        l = tk.encode(c, add_special_tokens=False).ids
        tk.encode_special_tokens = False
        out.append(
            {
                "tokenizer": f,
                "text": c,
                "ids": e.ids,
                "plain": p.ids,
                "literal": l,
                "decoded": tk.decode(p.ids, skip_special_tokens=True),
                "decoded_all": tk.decode(p.ids, skip_special_tokens=False),
            }
        )
json.dump(out, open(D + "tokenizer_cases.json", "w"), ensure_ascii=False, indent=0)

from transformers.utils.chat_template_utils import render_jinja_template

T = {}
T["chatml"] = """{%- if tools %}
    {{- 'tools' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role }}
        {%- generation -%}
        {{- '\\n' + content }}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '\\n<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {{- tool_call.arguments | tojson }}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
T["mistral"] = """{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}
    {% set system_message = messages[0]['content'] %}
{% else %}
    {% set loop_messages = messages %}
{% endif %}
{{ bos_token }}{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}
    {% if loop.last and system_message is defined %}
{{ ' [INST] ' + system_message + '\\n\\n' + message['content'].strip() + ' [/INST]' }}
    {% else %}
{{ ' [INST] ' + message['content'] + ' [/INST]' }}
    {% endif %}
{% elif message['role'] == 'assistant' %}
{{ ' ' + message['content'] | trim + eos_token }}
{% endif %}
{% endfor %}
"""
T["python"] = """{%- for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}
{% for k, v in m.items() %}{{ k }}={{ v | tojson(indent=2) }};{% endfor %}
{{ m.content.title() }}|{{ m['content'].startswith('a') }}|{{ m.get('x', 'none') }}|{{ m.content | upper }}|{{ m.content[1:3] }}|{{ m.content.replace('b', 'é') | tojson }}|{{ loop.previtem is defined }}
{% endfor %}{{ [1, 2.5, none, true, 'ü"'] | tojson }}{{ {'b': 1, 'a': [ ]} | tojson(sort_keys=true, separators=(',', ':')) }}{{ none }}{{ undefined_name }}{{ 'x' if tools }}"""
M = {
    "chatml": [
        {"role": "system", "content": "Be <brief> & 'kind'."},
        {"role": "user", "content": "Hi ü\n"},
        {
            "role": "assistant",
            "content": "<think>hm</think>\n\nok",
            "tool_calls": [
                {
                    "type": "function",
                    "function": {"name": "f", "arguments": {"zeta": 1, "alpha": ["<b>", None, True, 1.5], "é": {}}},
                }
            ],
        },
        {"role": "tool", "content": "42"},
        {"role": "tool", "content": "43"},
        {"role": "user", "content": "and?"},
    ],
    "mistral": [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": " b "},
        {"role": "user", "content": " c "},
    ],
    "python": [
        {"role": "user", "content": "abc def"},
        {"role": "x", "content": "zb\n", "n": [1, {"k": 2}]},
        {"role": "x", "content": "never"},
    ],
}
out = []
for k in T:
    r, _ = render_jinja_template(
        [M[k]], chat_template=T[k], add_generation_prompt=True, bos_token="<s>", eos_token="</s>"
    )
    out.append({"name": k, "template": T[k], "messages": json.dumps(M[k], ensure_ascii=False), "expected": r[0]})

# Templates with tools, arguments and other ends, in the styles of the families that are served most.
T["llama3"] = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- if tools_in_user_message and tools is not none %}
    {%- if messages | length != 0 %}
        {%- set first = messages[0]['content'] %}
        {%- if first is not string %}
            {%- set first = first | selectattr('type', 'equalto', 'text') | map(attribute='text') | map('trim') | join('\\n') %}
        {%- endif %}
        {%- set messages = messages[1:] %}
    {%- else %}
        {{- raise_exception("No first user message to put tools into") }}
    {%- endif %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' -}}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
    {{- first + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("One tool call at a time") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
T["qwen3"] = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- set call = tool_call.function if tool_call.function else tool_call %}
            {{- '<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
T["mistral_tools"] = """{%- set loop_messages = messages[1:] if messages[0]["role"] == "system" else messages %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS][" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- tool_call.function|tojson }}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ', "call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}
"""
T["documents"] = """{% if documents %}{% for d in documents %}[{{ d.title }}] {{ d.text }}
{% endfor %}{% endif %}{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{{ m.thinking or '' }}</>
{% endfor %}{{ add_generation_prompt }}"""
weather = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a \"place\" in °C",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}, "days": {"type": "integer"}}, "required": ["place"]},
    },
}
call = {"id": "abcdef123", "type": "function", "function": {"name": "weather", "arguments": {"place": "Köln", "days": 2}}}
user = {"role": "user", "content": " how is <it>? "}
talk = [
    {"role": "system", "content": "Be brief."},
    user,
    {"role": "assistant", "content": None, "tool_calls": [call]},
    {"role": "tool", "content": "12.5", "tool_call_id": "abcdef123"},
    {"role": "assistant", "content": "Mild."},
    {"role": "user", "content": "and then?"},
]
thinking = [user, {"role": "assistant", "reasoning": "hm\n", "content": "So"}]
half = [user, {"role": "assistant", "content": "It is "}]
parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": " b "}]}]
CASES = [
    ("llama3", talk, [weather], {"date_string": "1 May 2026"}, {}),
    ("llama3", talk, None, {"date_string": "1 May 2026", "tools_in_user_message": False}, {}),
    ("llama3", parts, [weather, weather], {"date_string": "1 May 2026"}, {}),
    ("llama3", half, None, {"date_string": ""}, {"continue_final_message": True}),
    ("llama3", half, None, {"date_string": ""}, {"add_generation_prompt": False}),
    ("qwen3", talk, [weather], {}, {}),
    ("qwen3", talk, [], {"enable_thinking": False}, {}),
    ("qwen3", talk, None, {"enable_thinking": True}, {"add_generation_prompt": False}),
    ("qwen3", thinking, None, {}, {"add_generation_prompt": False}),
    ("qwen3", half, None, {}, {"continue_final_message": True}),
    ("mistral_tools", talk, [weather, weather], {}, {}),
    ("mistral_tools", half, None, {"bos_token": "<other>"}, {"continue_final_message": True}),
    ("documents", parts, None, {"documents": [{"title": "T", "text": "x"}]}, {}),
    ("documents", [user, {"role": "assistant", "content": parts[0]["content"]}], None, {}, {"continue_final_message": True}),
    ("documents", [{"role": "user", "content": "q", "thinking": "t"}], None, {}, {"add_generation_prompt": False}),
]
for name, messages, tools, arguments, end in CASES:
    r, _ = render_jinja_template(
        [messages],
        tools=tools,
        chat_template=T[name],
        **{"add_generation_prompt": not end.get("continue_final_message"), "bos_token": "<s>", "eos_token": "</s>", **end, **arguments},
    )
    dump = lambda value: json.dumps(value, ensure_ascii=False)
    out.append(
        {
            "name": name,
            "template": T[name],
            "messages": dump(messages),
            "tools": "" if tools is None else dump(tools),
            "arguments": dump(arguments) if arguments else "",
            **end,
            "expected": r[0],
        }
    )
json.dump(out, open(D + "chat_templates.json", "w"), ensure_ascii=False, indent=1)
