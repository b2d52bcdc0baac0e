"""Llama 3.1's dialog format in Jinja, for the chat template of an exported tokenizer: transformers, vLLM.

It gives the tokens of `chat.read` and `Format.encode`, and refuses what they refuse. Three things differ: an
assistant's message without the key content says nothing, since transformers take away a content of null; a template's
output is one text, so names of special tokens that stand in messages are broken (`<|` becomes `< |`); and Jinja cannot
read JSON, so arguments that are JSON text are refused. vLLM reads them before. What an assistant says and how it ends
stands in {% generation %}, by which transformers make masks (TRL's assistant_only_loss) and others do nothing.

Variables besides transformers' own (messages, tools, add_generation_prompt): builtin_tools, date_string.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from llama31.tokens import chat

_PLAIN = ("begin_of_text", "end_of_text", "finetune_right_pad_id", "start_header_id", "end_header_id")
_NAMES = tuple(f"<|{name}|>" for name in (*_PLAIN, "eom_id", "eot_id", "python_tag"))

_MACROS = r"""{%- macro plain(text) -%}
{%- set kept = namespace(text=text) -%}
{%- for name in NAMES -%}
{%- set kept.text = kept.text|replace(name, name[:1] ~ ' ' ~ name[1:]) -%}
{%- endfor -%}
{{- kept.text|replace('<|reserved_special_token_', '< |reserved_special_token_') -}}
{%- endmacro -%}
{%- macro header(role) -%}
{{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' -}}
{%- endmacro -%}
{%- macro text(given, where, role) -%}
{%- set seen = namespace(parts=role != 'ipython' or given is undefined or given is none) -%}
{%- if not seen.parts and given is iterable and given is not string and given is not mapping -%}
{%- for part in given -%}
{%- if part is mapping and part.type is string and part.type in PARTS -%}{%- set seen.parts = true -%}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if given is string -%}
{{- given -}}
{%- elif not seen.parts -%}
{{- given|tojson -}}
{%- elif given is mapping or given is defined and given is not none and given is not iterable -%}
{{- raise_exception(where ~ '.content: give a text, or a list of texts\' parts') -}}
{%- elif given is defined and given is not none -%}
{%- for part in given -%}
{%- if part is not mapping or part.type != 'text' or part.text is not string -%}
{{- raise_exception(where ~ '.content: a part that is no text; give {"type": "text", "text": TEXT}') -}}
{%- endif -%}
{{- part.text -}}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro called(call, where, said) -%}
{%- if call is not mapping or call.name is not string -%}
{{- raise_exception(where ~ '.tool_calls: give [{"function": {"name": ..., "arguments": {...}}}]') -}}
{%- endif -%}
{%- set given = {} -%}
{%- if call.arguments is defined -%}
{%- set given = call.arguments -%}
{%- elif call.parameters is defined -%}
{%- set given = call.parameters -%}
{%- endif -%}
{%- if given is not mapping -%}
{{- raise_exception(where ~ '.tool_calls: give arguments as an object, and of JSON text what json.loads gives') -}}
{%- endif -%}
{%- if call.name in NEEDED and given[NEEDED[call.name]] is not string -%}
{{- raise_exception(where ~ '.tool_calls: ' ~ call.name ~ ' takes the text ' ~ NEEDED[call.name]) -}}
{%- endif -%}
{%- if call.name == 'code_interpreter' -%}
{{- plain(said) ~ '<|python_tag|>' ~ plain(given['code']) -}}
{%- elif call.name in BUILTIN -%}
{{- plain(said ~ call.name ~ '.call(query="' ~ given['query'] ~ '")') -}}
{%- else -%}
{%- set name = said ~ '{"type": "function", "name": ' ~ call.name|tojson(ensure_ascii=true) -%}
{{- plain(name ~ ', "parameters": ' ~ given|tojson(ensure_ascii=true) ~ '}') -}}
{%- endif -%}
{%- endmacro -%}
"""
_BEGINNING = r"""{%- if not messages or messages is string or messages is mapping -%}
{{- raise_exception('messages: a dialog has at least one message') -}}
{%- endif -%}
{%- set found = namespace(text='') -%}
{%- if builtin_tools is defined and builtin_tools is not none -%}
{%- if builtin_tools is string or builtin_tools is mapping or builtin_tools is not iterable -%}
{{- raise_exception('builtin_tools: give a list of ' ~ BUILTIN|join(', ')) -}}
{%- endif -%}
{%- for name in builtin_tools -%}
{%- if name not in BUILTIN -%}
{{- raise_exception('builtin_tools: ' ~ name ~ ' unknown; Llama 3.1 has ' ~ BUILTIN|join(', ')) -}}
{%- endif -%}
{%- endfor -%}
{%- set searches = builtin_tools|reject('equalto', 'code_interpreter')|join(', ') -%}
{%- set found.text = 'Environment: ipython\n' ~ ('Tools: ' ~ searches ~ '\n' if searches else '') ~ '\n' -%}
{%- endif -%}
{%- if date_string is defined and date_string is not none -%}
{%- if date_string is not string -%}{{- raise_exception('date_string: give a text') -}}{%- endif -%}
{%- if date_string -%}
{%- set found.text = found.text ~ 'Cutting Knowledge Date: CUTOFF\nToday Date: ' ~ date_string ~ '\n\n' -%}
{%- endif -%}
{%- endif -%}
{%- if tools is defined and tools is not none -%}
{%- if tools is string or tools is mapping or tools is not iterable -%}
{{- raise_exception('tools: give a list of JSON objects') -}}
{%- endif -%}
{%- if tools -%}
{%- set found.text = found.text ~ CALLING ~ '\n' -%}
{%- for tool in tools -%}
{%- if tool is not mapping -%}{{- raise_exception('tools: give a list of JSON objects') -}}{%- endif -%}
{%- set found.text = found.text ~ (tool|tojson) ~ '\n' -%}
{%- endfor -%}
{%- set found.text = found.text ~ '\n' -%}
{%- endif -%}
{%- endif -%}
{{- bos_token -}}
{%- if found.text and messages[0].role not in ['system', 'developer'] -%}
{{- header('system') ~ plain(found.text|trim) ~ '<|eot_id|>' -}}
{%- endif -%}
"""
_MESSAGES = r"""{%- for message in messages -%}
{%- set where = 'messages[' ~ loop.index0 ~ ']' -%}
{%- if message is not mapping or message.role not in ROLES -%}
{{- raise_exception(where ~ ': give an object whose role is one of ' ~ ROLES|join(', ')) -}}
{%- endif -%}
{%- for key in LOST -%}
{%- if message[key] -%}
{{- raise_exception(where ~ '.' ~ key ~ ': this call would be lost; give it as tool_calls') -}}
{%- endif -%}
{%- endfor -%}
{%- for key in APART -%}
{%- if message[key] -%}
{{- raise_exception(where ~ '.' ~ key ~ ': Llama 3.1 has no place for it') -}}
{%- endif -%}
{%- endfor -%}
{%- set role = HEADS[message.role] -%}
{%- set content = message.content -%}
{%- if role == 'assistant' and (content is undefined or content is none) and message.refusal is string -%}
{%- set content = message.refusal -%}
{%- endif -%}
{%- set calls = [] -%}
{%- if message.tool_calls is defined and message.tool_calls is not none -%}
{%- set calls = message.tool_calls -%}
{%- endif -%}
{%- if calls is string or calls is mapping or calls is not iterable or calls|length > 1 -%}
{{- raise_exception(where ~ '.tool_calls: Llama 3.1 makes one call per message; split the message') -}}
{%- endif -%}
{%- set said = text(content, where, role)|trim -%}
{%- if calls and role != 'assistant' -%}
{{- raise_exception(where ~ '.tool_calls: only an assistant calls') -}}
{%- endif -%}
{%- set told = namespace(text=plain(said), awaits=false, learned=role == 'assistant' and (calls or said)) -%}
{%- if calls -%}
{%- set call = calls[0] -%}
{%- if call is mapping and call.function is defined -%}{%- set call = call.function -%}{%- endif -%}
{%- set told.text = called(call, where, said) -%}
{%- set told.awaits = call.name in BUILTIN -%}
{%- elif loop.first and role == 'system' -%}
{%- set told.text = plain((found.text ~ said)|trim) -%}
{%- endif -%}
{%- if message.awaits is defined and message.awaits is not none -%}
{%- set told.awaits = message.awaits -%}
{%- endif -%}
{%- if told.awaits is not boolean or told.awaits and role != 'assistant' -%}
{{- raise_exception(where ~ '.awaits: give true or false, and true to an assistant\'s alone') -}}
{%- endif -%}
{%- if message.weight is defined and message.weight is not none -%}
{%- if message.weight not in [0, 1] or message.weight and role != 'assistant' -%}
{{- raise_exception(where ~ '.weight: give 0 or 1, and 1 to an assistant\'s alone') -}}
{%- endif -%}
{%- set told.learned = told.learned and message.weight -%}
{%- endif -%}
{%- for key in UNLEARNED -%}
{%- if message[key] is boolean and not message[key] -%}{%- set told.learned = false -%}{%- endif -%}
{%- endfor -%}
{{- header(role) -}}
{%- set told.text = told.text ~ ('<|eom_id|>' if told.awaits else '<|eot_id|>') -%}
{%- if told.learned -%}
{%- generation -%}
{{- told.text -}}
{%- endgeneration -%}
{%- else -%}
{{- told.text -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- header('assistant') -}}{%- endif -%}
"""


def of(special: Iterable[str] = ()) -> str:
    """The template of a tokenizer with these special tokens, whose names are broken where they stand in a text."""
    own = [name for name in special if name not in _NAMES and not name.startswith("<|reserved_special_token_")]
    values: dict[str, object] = {"NAMES": [*_NAMES, *sorted(own)], "ROLES": list(chat.ROLES), "HEADS": chat.ROLES}
    values |= {"LOST": list(chat.LOST), "APART": list(chat.APART), "PARTS": list(chat.PARTS)}
    values |= {"UNLEARNED": list(chat.UNLEARNED), "BUILTIN": list(chat.BUILTIN), "NEEDED": chat.NEEDED}
    values |= {"CALLING": chat.CALLING}
    text = _MACROS + _BEGINNING + _MESSAGES
    for name, value in values.items():
        text = text.replace(name, repr(value))
    return text.replace("CUTOFF", chat.CUTOFF)


TEMPLATE = of()


class Ended(Protocol):
    """What is needed of a tokenizer to know what ends an answer."""

    eos_id: int
    eot_id: int
    special: dict[str, int]

    def decode(self, ids: Sequence[int]) -> str: ...


ENDS = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")  # Llama 3.1's, as its generation config lists them


def stops(tokenizer: Ended) -> dict[str, int]:
    """Names and ids of the tokens that end an answer."""
    named = {name: tokenizer.special[name] for name in ENDS if name in tokenizer.special}
    return named | {tokenizer.decode([number]): number for number in (tokenizer.eos_id, tokenizer.eot_id)}
