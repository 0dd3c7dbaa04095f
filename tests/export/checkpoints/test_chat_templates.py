"""Chat templates in the styles of the large families render here as `apply_chat_template` renders them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from plaudit_export.checkpoints.checkpoint import load_checkpoint
from plaudit_export.checks.reference import TEMPLATE_ERRORS
from plaudit_service.text.chat_template import ChatTemplateError, compile_chat_template

LLAMA_3 = """\
{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim \
+ '<|eot_id|>' %}\
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""

QWEN = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{- tools | tojson }}{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

MISTRAL = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate user/assistant/...") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with an optional first system message!") }}
    {%- endif %}
{%- endfor %}
"""

STYLES = {"llama-3": LLAMA_3, "qwen": QWEN, "gemma": GEMMA, "mistral": MISTRAL}

ROLES = [
    ("user",),
    ("assistant",),
    ("user", "assistant"),
    ("user", "assistant", "user", "assistant"),
    ("system", "user", "assistant"),
    ("system", "user", "assistant", "user", "assistant"),
    ("user", "system", "assistant"),
    ("user", "user", "assistant"),
    ("user", "assistant", "assistant"),
    ("user", "tool", "assistant"),
]
CONTENTS = [
    "Hi.",
    "",
    "  spaces and\n\nlines \n",
    "<|eot_id|> {{ bos_token }} {% raw %}",
    "👩‍👩‍👧‍👦 'quoted' \"<&>\" é",
]

CHATS = [
    [{"role": role, "content": CONTENTS[(start + turn) % len(CONTENTS)]} for turn, role in enumerate(roles)]
    for roles in ROLES
    for start in range(len(CONTENTS))
]


@pytest.fixture(scope="module")
def tokenizer(causal_checkpoint) -> Any:
    return load_checkpoint(str(causal_checkpoint)).tokenizer


@pytest.mark.parametrize(
    ("style", "accepted"),
    [
        ("llama-3", ROLES),
        ("qwen", ROLES),
        ("gemma", [ROLES[0], *ROLES[2:4]]),
        ("mistral", [ROLES[0], *ROLES[2:6]]),
    ],
)
def test_a_template_renders_and_refuses_the_same_chats_as_in_transformers(tokenizer, style, accepted):
    template = STYLES[style]
    render = compile_chat_template(template, {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token})
    apply = partial(tokenizer.apply_chat_template, chat_template=template, tokenize=False)
    for chat in CHATS:
        rendered = outcome(render, chat)
        assert rendered == outcome(apply, chat)
        assert (rendered is not None) == (tuple(message["role"] for message in chat) in accepted)


def test_a_list_of_special_tokens_is_rendered_as_in_transformers(tokenizer):
    template = "{{ messages[0]['content'] }}{{ more | join('|') }}{{ more[0] }}{{ more }}{{ mask_token is defined }}"
    tokens = {"more": ["<a>", "<b>"]}
    chat = [{"role": "user", "content": "Hi"}]
    rendered = compile_chat_template(template, tokens)(chat)
    assert rendered == tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, **tokens)
    assert rendered == "Hi<a>|<b><a>['<a>', '<b>']False"


def outcome(render: Callable[[list[dict[str, str]]], str], chat: list[dict[str, str]]) -> str | None:
    """The rendered chat, None where it is refused."""
    try:
        return render(chat)
    except (ChatTemplateError, *TEMPLATE_ERRORS):
        return None


def test_a_chat_in_every_style_is_rendered_to_the_letter():
    chat = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Yes"}]
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    rendered = {name: compile_chat_template(text, tokens)(chat) for name, text in STYLES.items()}
    assert rendered == {
        "llama-3": (
            "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|>"
        ),
        "qwen": (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n"
        ),
        "gemma": "<s><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYes<end_of_turn>\n",
        "mistral": "<s>[INST]  Hi [/INST] Yes</s>",
    }
