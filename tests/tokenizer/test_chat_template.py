"""Chat templates render as in transformers, and cannot leave the sandbox."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from pigguf.errors import TokenizerError
from pigguf.tokenizer import ChatTemplate

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "  You are <b>brief</b> & kind.\n"},
    {"role": "user", "content": "Was ist 1 < 2? “ja” 🙂"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "Why?"},
]
TOOLS = [{"type": "function", "function": {"name": "größe", "parameters": {"a": [1, None, True]}}}]

LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}
    {% set loop_messages = messages[1:] %}
    {% set system_message = '<<SYS>>\\n' + messages[0]['content'].strip() + '\\n<</SYS>>\\n\\n' %}
{% else %}
    {% set loop_messages = messages %}
    {% set system_message = '' %}
{% endif %}
{% for message in loop_messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% set content = system_message + message['content'] if loop.index0 == 0 else message['content'] %}
    {% if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{- ' ' + content.strip() + ' ' + eos_token }}
    {% endif %}
{% endfor %}
"""
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LOOP_CONTROLS = """\
{%- set ns = namespace(found=false) -%}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}{%- continue -%}{%- endif -%}
    {%- if ns.found -%}{%- break -%}{%- endif -%}
    {%- set ns.found = true -%}
    {{ message.content }}
{%- endfor -%}
"""
TOOL_TEMPLATE = (
    "{% if tools is not none %}{{ tools | tojson(indent=2) }}{% else %}no tools{% endif %}"
    "{{ messages | tojson }}{{ documents }}{% if thinking is defined %}{{ thinking }}{% endif %}"
)

TEMPLATES = {
    "llama 2": LLAMA2,
    "chatml": CHATML,
    "loop controls": LOOP_CONTROLS,
    "tools": TOOL_TEMPLATE,
    "date": "{{ strftime_now('%Y') }}-{{ messages | length }}",
    "filters": "{{ messages | map(attribute='role') | join(', ') }}{{ messages[1].content.split()[-1] }}",
}  # fmt: skip


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize(
    ("messages", "prompt", "variables"),
    [
        (MESSAGES, True, {}),
        (MESSAGES, False, {}),
        (MESSAGES[1:2] * 2, True, {"thinking": "yes"}),
        (MESSAGES, True, {"tools": TOOLS}),
    ],
)
def test_a_template_renders_as_in_transformers(
    source: str, messages: list[dict[str, Any]], prompt: bool, variables: dict[str, Any]
) -> None:
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}

    def theirs() -> str:
        rendered, _ = render_jinja_template(
            conversations=[messages],
            chat_template=source,
            add_generation_prompt=prompt,
            **tokens,
            **variables,
        )
        return str(rendered[0])

    def ours() -> str:
        return template.render(messages, add_generation_prompt=prompt, **variables)

    if source is LLAMA2 and messages[0] == messages[1]:  # two questions in a row: the template refuses
        with pytest.raises(TokenizerError, match="roles must alternate"):
            ours()
    else:
        assert ours() == theirs()


def test_the_error_has_the_templates_message() -> None:
    template = ChatTemplate("{{ raise_exception('Only user and assistant roles are supported!') }}")
    with pytest.raises(TokenizerError, match="Only user and assistant roles are supported!"):
        template.render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{% if messages %}",
        "{{ messages[0 }}",
        "{% unknown_tag %}",
        "{{ messages | no_such_filter }}",
    ],
)
def test_invalid_jinja_is_refused(source: str) -> None:
    with pytest.raises(TokenizerError, match="the chat template is not valid jinja"):
        ChatTemplate(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[7].content }}",
        "{{ messages[0]['content'] + 1 }}",
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
        "{{ messages[0].content.index('absent') }}",
        "{{ [].no_such_method() }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% for i in range(999999999) %}x{% endfor %}",
    ],
)
def test_a_template_that_fails_is_reported(source: str) -> None:
    with pytest.raises(TokenizerError, match="the chat template cannot render these messages"):
        ChatTemplate(source).render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({'role': 'user'}) }}",
        "{{ messages[0].update({'content': ''}) }}",
        "{{ raise_exception.__globals__['jinja2'] }}",
        "{{ strftime_now.__globals__['__builtins__'] }}",
        "{% set ns = namespace() %}{{ ns.__init__.__globals__['x'] }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(
        TokenizerError,
        match=r"cannot render these messages: .*(unsafe|not safely|undefined|has no attribute)",
    ):
        ChatTemplate(source).render(MESSAGES)


def test_the_callers_messages_are_not_modified() -> None:
    messages = [{"role": "user", "content": "a"}]
    ChatTemplate("{% for m in messages %}{% set m2 = m %}{{ m.content }}{% endfor %}").render(messages)
    assert messages == [{"role": "user", "content": "a"}]
