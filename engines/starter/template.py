"""How a conversation becomes text: the Jinja chat template, and the same rules in Python.

The layout is ChatML with Hermes-style tools, as Qwen2.5 uses it, so that llama.cpp and others know
how to parse the calls. The tools block is kept short: a name and the type (or the choices) of each
required parameter, no descriptions, since a model this small reads names and little else.
Training uses `render`, which also says which characters the model is to learn; a test compares the
two, because a model trained on one layout and served with another is noise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

START, END, STOP = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL = [STOP, START, END]
TAGS = ["<tools>", "</tools>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
TOOLS_LEAD = "You may call these tools:\n"

# Text between these two marks is what a grammar forces at run time. It is hardly learnt: only so
# much that the model, forced to write it, cuts it into the usual tokens.
FORCED, FREE = "\x01", "\x02"
_FORCED_WEIGHT = 0.1

Message = Mapping[str, Any]
Piece = tuple[str, float]

TEMPLATE = r"""
{%- macro text(c) -%}
  {%- if c is string -%}{{ c }}
  {%- elif c is mapping -%}{%- if c.text is string -%}{{ c.text }}{%- endif -%}
  {%- elif c is iterable -%}
    {%- for p in c -%}
      {%- if p is string -%}{{ p }}
      {%- elif p is mapping and p.text is string -%}{{ p.text }}{%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- macro kind(p) -%}
  {%- if p is mapping and p.enum is defined and p.enum -%}{{ p.enum | tojson }}
  {%- elif p is mapping and p.type is string -%}"{{ p.type }}"
  {%- elif p is mapping and p.type is iterable and p.type is not mapping and p.type -%}
    "{{ p.type[0] }}"
  {%- else -%}"any"{%- endif -%}
{%- endmacro -%}
{%- macro signature(t) -%}
  {%- set f = t.function if t.function is mapping else t -%}
  {%- set s = f.parameters if f.parameters is mapping else {} -%}
  {%- set all = s.properties if s.properties is mapping else {} -%}
  {%- set need = s.required if s.required else [] -%}
  {%- set ns = namespace(sep='') -%}
  {{- '{"name": "' ~ f.name ~ '", "parameters": {' -}}
  {%- for k, v in all.items() -%}
    {%- if not need or k in need -%}
      {{- ns.sep ~ '"' ~ k ~ '": ' ~ kind(v) -}}{%- set ns.sep = ', ' -%}
    {%- endif -%}
  {%- endfor -%}
  {{- '}}' -}}
{%- endmacro -%}
{%- macro call(c) -%}
  {%- set f = c.function if c.function is mapping else c -%}
  {{- '<tool_call>\n{"name": "' ~ f.name ~ '", "arguments": ' -}}
  {%- if f.arguments is string -%}{{ f.arguments if f.arguments else '{}' }}
  {%- elif f.arguments is mapping -%}
    {{- '{' -}}
    {%- for k, v in f.arguments.items() -%}
      {{- ('' if loop.first else ', ') ~ '"' ~ k ~ '": ' ~ (v | tojson) -}}
    {%- endfor -%}
    {{- '}' -}}
  {%- else -%}{{ '{}' }}{%- endif -%}
  {{- '}\n</tool_call>' -}}
{%- endmacro -%}
{%- set first = '' -%}
{%- set rest = messages -%}
{%- if messages and messages[0].role in ['system', 'developer'] -%}
  {%- set first = text(messages[0].content) -%}
  {%- set rest = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
  {{- '<|im_start|>system\n' ~ first ~ ('\n\n' if first else '') -}}
  {{- 'You may call these tools:\n<tools>\n' -}}
  {%- for t in tools -%}{{ signature(t) ~ '\n' }}{%- endfor -%}
  {{- '</tools><|im_end|>\n' -}}
{%- elif first -%}
  {{- '<|im_start|>system\n' ~ first ~ '<|im_end|>\n' -}}
{%- endif -%}
{%- set ns = namespace(results=false) -%}
{%- for m in rest -%}
  {%- if m.role in ['tool', 'function'] -%}
    {{- '\n' if ns.results else '<|im_start|>user\n' -}}
    {{- '<tool_response>\n' ~ text(m.content) ~ '\n</tool_response>' -}}
    {%- set ns.results = true -%}
  {%- else -%}
    {%- if ns.results -%}{{ '<|im_end|>\n' }}{%- endif -%}
    {%- set ns.results = false -%}
    {%- set role = 'system' if m.role == 'developer' else m.role -%}
    {%- set said = text(m.content) -%}
    {{- '<|im_start|>' ~ role ~ '\n' ~ said -}}
    {%- if role == 'assistant' and m.tool_calls -%}
      {%- for c in m.tool_calls -%}
        {{- '\n' if said or not loop.first else '' -}}{{ call(c) }}
      {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if ns.results -%}{{ '<|im_end|>\n' }}{%- endif -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}
""".strip()


def tool_call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """One call as the model writes it."""
    inner = json.dumps(dict(arguments), ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {inner}}}\n</tool_call>'


def tool_line(tool: Mapping[str, Any]) -> str:
    """One line of the tools block."""
    function = tool.get("function", tool)
    schema = function.get("parameters") or {}
    properties, need = schema.get("properties") or {}, schema.get("required") or []
    fields = [
        f'"{key}": {json.dumps(spec.get("enum") or spec.get("type", "any"), ensure_ascii=False)}'
        for key, spec in properties.items()
        if not need or key in need
    ]
    return f'{{"name": "{function["name"]}", "parameters": {{{", ".join(fields)}}}}}\n'


def _answer(message: Message) -> list[Piece]:
    """What the assistant says, cut into learnt and forced pieces."""
    said = str(message.get("content") or "")
    calls = [
        tool_call_text(c["function"]["name"], c["function"]["arguments"])
        for c in message.get("tool_calls") or []
    ]
    text = "\n".join([said, *calls] if said else calls) + END
    pieces: list[Piece] = []
    for part in text.split(FORCED):
        forced, mark, free = part.partition(FREE)
        pieces += [(forced, _FORCED_WEIGHT), (free, 1.0)] if mark else [(part, 1.0)]
    return [p for p in pieces if p[0]]


def render(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, generate: bool = False
) -> list[Piece]:
    """The conversation as (text, weight) pieces; the weight says how much it is learnt."""
    rest, first, out = list(messages), "", []
    if rest and rest[0]["role"] == "system":
        first = str(rest.pop(0)["content"])
    if tools:
        block = TOOLS_LEAD + "<tools>\n" + "".join(tool_line(t) for t in tools) + "</tools>"
        first = f"{first}\n\n{block}" if first else block
    if first:
        out.append((f"{START}system\n{first}{END}\n", 0.0))
    results = False
    for message in rest:
        role = message["role"]
        if role == "tool":
            lead = "\n" if results else f"{START}user\n"
            out.append((f"{lead}<tool_response>\n{message['content']}\n</tool_response>", 0.0))
            results = True
            continue
        out.append(((f"{END}\n" if results else "") + f"{START}{role}\n", 0.0))
        results = False
        if role == "assistant":
            learn = 0.0 if message.get("context") else 1.0
            out += [(text, weight * learn) for text, weight in _answer(message)] + [("\n", 0.0)]
        else:
            out.append((f"{message['content']}{END}\n", 0.0))
    if results:
        out.append((f"{END}\n", 0.0))
    if generate:
        out.append((f"{START}assistant\n", 0.0))
    return out
