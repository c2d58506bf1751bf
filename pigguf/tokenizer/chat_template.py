"""Render chat templates: jinja source of a model, run in a sandbox, gives the text of a prompt.

The environment is the one that templates are written for, transformers' (utils/chat_template_utils.py):
trimmed blocks, loop controls, a tojson that does not escape non-ASCII characters, raise_exception,
strftime_now, and a {% generation %} block that renders its content.

Tools and documents are rendered only if the caller passes them as variables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pigguf.errors import TokenizerError


class ChatTemplate:
    """A compiled chat template with the tokens that it may use.

    Args:
        source: jinja source.
        bos_token, eos_token: texts of these tokens, "" if the model has none.

    Raises:
        TokenizerError: the source is not valid jinja.
    """

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TokenizerError(
                f"the chat template is not valid jinja: {error.message} (line {error.lineno})",
                "correct chat_template in tokenizer_config.json or chat_template.jinja, or remove it",
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Return the prompt text of a conversation.

        Args:
            messages: {"role": ..., "content": ...}, in order.
            add_generation_prompt: whether to end with the beginning of the assistant's turn.
            variables: other variables of the template (tools, enable_thinking ...).

        Raises:
            TokenizerError: the template raises an error; the message has the template's reason.
        """
        values = {"tools": None, "documents": None, **self._tokens, **variables}
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                **values,
            )
        except Exception as error:  # a template is a program and can raise anything
            raise TokenizerError(f"the chat template cannot render these messages: {error}") from error


class _Generation(Extension):
    """Renders the content of {% generation %}, which marks assistant turns for training."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


_ENVIRONMENT = _environment()
