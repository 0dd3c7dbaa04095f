"""Chat templates render as transformers renders them, and a malicious one can neither escape nor exhaust."""

import tracemalloc

import pytest

from plaudit_service.items import check_request
from plaudit_service.text.chat_template import ChatTemplateError, compile_chat_template

MESSAGES = [{"role": "user", "content": "good"}, {"role": "assistant", "content": "fine\n"}]


def rendered(source, messages=MESSAGES):
    return compile_chat_template(source, {"bos_token": "<s>", "eos_token": "</s>"})(messages)


USUAL = [
    (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content']|trim }}{% endfor %}",
        "<s>[user]good[assistant]fine",
    ),
    ("{% for m in messages %}{{ loop.index }}{{ ',' if not loop.last }}{% endfor %}", "1,2"),
    ("{% for m in messages %}{{ loop.length }}{{ loop.previtem.role if loop.previtem }}{% endfor %}", "22user"),
    ("{{ '<' ~ messages|length ~ '>' + '=' * 3 }}", "<2>==="),
    (
        "{% macro turn(m) %}<{{ m.role }}>{% endmacro %}{{ turn(messages[0]) }}{{ turn(messages[1]) }}",
        "<user><assistant>",
    ),
    ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
    ("{% for m in messages if m.role == 'user' %}{{ m.content.upper() }}{% else %}none{% endfor %}", "GOOD"),
    ("{{ messages[1].content.replace('fine', 'bad').split('\\n')[0] }}", "bad"),
    ("{{ messages|map(attribute='role')|join('+') }}", "user+assistant"),
    (
        "{{ messages|join('+', attribute='role') }}{{ range(3)|join }}{{ {'a': 1}|join }}{{ none_such|join }}",
        "user+assistant012a",
    ),
    ("{{ '+'.join(messages|map(attribute='role')) }}", "user+assistant"),
    ("{{ messages[0]|tojson }}", '{"role": "user", "content": "good"}'),
    ("{{ '%s: %s'|format('a', 1) }}{{ '%05d' % 7 }}{{ '{:>3}'.format('b') }}", "a: 100007  b"),
    ("{% generation %}{{ messages[1].content|trim }}{% endgeneration %}", "fine"),
    (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
        "assistant",
    ),
    ("{% for x in [1, [2, [3]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "123"),
    ("{% set text %}{{ messages[0].role }}!{% endset %}{{ text }}", "user!"),
    ("{{ undefined_name }}{{ 2 ** 10 }}{{ 7 % 3 }}{{ ('a\\nb'|indent(2)) }}", "10241a\n  b"),
]


@pytest.mark.parametrize(("source", "expected"), USUAL)
def test_what_templates_use_renders_as_in_plain_jinja(source, expected):
    from transformers.utils.chat_template_utils import _compile_jinja_template

    plain = _compile_jinja_template(source).render(messages=MESSAGES, bos_token="<s>", eos_token="</s>")
    assert rendered(source) == expected == plain


TOOLS = """{%- for m in messages -%}
<{{ m.role }}{{ ' ' + m.name if m.name is defined }}>
{%- if m.reasoning_content is string %}<think>{{ m.reasoning_content }}</think>{% endif -%}
{%- if m.content %}{{ m.content }}{% endif -%}
{%- if 'tool_calls' in m %}{% for call in m.tool_calls %}{{ call.function.name }}{{ call.function.arguments | tojson }}
{%- for key, value in call.function.arguments.items() %}[{{ key }}={{ value }}]{% endfor %}{% endfor %}{% endif -%}
{%- if m.tool_call_id %}#{{ m.tool_call_id }}{% endif -%}
{%- endfor %}"""


def test_tool_calls_and_reasoning_render_as_transformers_renders_the_same_message():
    from transformers.utils.chat_template_utils import _compile_jinja_template

    arguments = {"city": "Ulm \u00fc <b>", "days": [1, 2.5, None, True], "nested": {"a": {}}}
    chat = [
        {"role": "user", "content": "good", "name": "Ann"},
        {"role": "assistant", "reasoning_content": "well", "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "4", "tool_call_id": "x1"},
    ]
    chat[1]["tool_calls"][0]["function"]["arguments"] = arguments
    sent = [{"refusal": None, "thinking": None, **message} for message in chat]
    (item,) = check_request({"items": [{"messages": sent}]}).items
    messages = [message.to_template() for message in item.messages]
    assert messages == chat
    plain = _compile_jinja_template(TOOLS).render(messages=chat)
    assert rendered(TOOLS, messages) == plain
    assert "f" + '{"city": "Ulm \u00fc <b>", "days": [1, 2.5, null, true]' in plain


def test_a_chat_may_write_as_much_of_its_tool_calls_as_of_its_texts():
    calls = [{"function": {"name": "f", "arguments": {"numbers": list(range(40_000))}}}]
    chat = [{"role": "assistant", "tool_calls": calls}]
    assert len(rendered("{{ messages[0].tool_calls | tojson }}", chat)) > 65_536 + 1024


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ messages['__class__'] }}{{ messages.append(1) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ raise_exception.__globals__.__builtins__ }}",
    "{{ ''|attr('__class__')|attr('mro') }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{% include 'file:///etc/passwd' %}",
    "{{ lipsum() }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_no_template_reaches_python_or_chance(source):
    """What is not allowed is an error, or undefined: as text, nothing."""
    try:
        text = rendered(source)
    except ChatTemplateError:
        return
    assert text == ""


NESTED = "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
TWICE = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(64) }}"

BOMBS = {
    "a loop of 1e9": "{% for i in range(10 ** 9) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "nested loops that write": "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "a recursive loop": "{% for i in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "multiplication": "{{ 'x' * 10 ** 10 }}",
    "multiplication from the left": "{{ 10 ** 10 * 'x' }}",
    "multiplication of a list": "{{ ([0] * 10 ** 10)|length }}",
    "addition": "{% set ns = namespace(x='x') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "concatenation": "{% set ns = namespace(x='x') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "a block": (
        "{% set ns = namespace(x='x') %}{% for i in range(64) %}"
        "{% set t %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = t %}{% endfor %}"
    ),
    "nested lists": NESTED + "{{ ns.x }}",
    "nested lists as JSON": NESTED + "{{ ns.x|tojson }}",
    "a macro that calls itself twice": TWICE,
    "power": "{{ 9 ** 99999 }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(64) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a width": "{{ '%1000000000d' % 1 }}",
    "a width of format": "{{ '{:>1000000000}'.format(1) }}",
    "a width in an argument": "{{ '{:>{}}'.format(1, 10 ** 9) }}",
    "a starred width": "{{ '%*d' % (10 ** 9, 1) }}",
    "a width of a filter": "{{ '%1000000000d'|format(1) }}",
    "padding": "{{ 'x'.ljust(10 ** 9) }}",
    "centering": "{{ 'x'|center(10 ** 9) }}",
    "replacement": "{{ ('a' * 99999).replace('', 'b' * 99999) }}",
    "replacement by the filter": "{{ ('a' * 99999)|replace('', 'b' * 99999) }}",
    "joining": "{{ ('b' * 99999).join('a' * 99999) }}",
    "joining by the filter": "{{ range(99999)|list|join('b' * 99999) }}",
    "joining a range": "{{ range(99999)|join('b' * 99999) }}",
    "joining a generator": "{{ ('b' * 99999).join(range(99999)|map('string')) }}",
    "indentation": "{{ ('\\n' * 99999)|indent('b' * 99999) }}",
    "indentation of JSON": "{{ messages|tojson(indent=10 ** 9) }}",
    "a mapped filter": "{{ range(99999)|map('string')|map('replace', '', 'b' * 99999)|join }}",
    "tabs": "{{ ('\\t' * 99999).expandtabs(99999) }}",
    "a summed list": "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "text out of proportion": "{% for i in range(1000) %}" + "x" * 1000 + "{% endfor %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_cut(name):
    with pytest.raises(ChatTemplateError):
        rendered(BOMBS[name])


@pytest.mark.parametrize("name", ["joining a range", "joining a generator"])
def test_what_a_bomb_would_join_is_never_made(name):
    tracemalloc.start()
    try:
        with pytest.raises(ChatTemplateError):
            rendered(BOMBS[name])
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


def test_a_template_that_is_no_jinja_is_refused_when_it_is_compiled():
    with pytest.raises(ChatTemplateError, match="cannot be parsed"):
        compile_chat_template("{% for %}", {})


def test_a_long_chat_is_no_bomb():
    messages = [{"role": "user", "content": "good " * 20}] * 10_000
    source = "{% for m in messages %}{{ '<|start|>' + m.role + '<|end|>' ~ m.content|trim }}{{ eos_token }}{% endfor %}"
    assert len(rendered(source, messages)) == 10_000 * (len("<|start|>user<|end|>") + 99 + 4)
