"""Functions that a model may call: how it writes a call, what a call is held to, and calls out of an answer.

A model's chat template is tried with a call, and the row of FORMS that the call reads as is the model's form.
Where there is none, for the template knows no tools or a form that is not here, the functions and their
results are told in words, within the messages (`in_words`), and calls are of the form WORDS.
Contract: a call names a function of the list, and its arguments are JSON that the function's schema accepts,
unless the answer ends before the call does. After its calls an answer ends.
Left out: who runs a function (the caller), text that stands after a call, calls within a model's thoughts
(they count as calls).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from pigguf.errors import TokenizerError, UsageError
from pigguf.grammar import Grammar, gbnf
from pigguf.inference.detokenizer import partial_match_length
from pigguf.inference.engine import Model
from pigguf.inference.engine.sampling import GrammarTrigger
from pigguf.tokenizer.chat_template import ChatTemplate


@dataclass(frozen=True)
class Tool:
    """A function: letters, digits, _ and - for its name; its parameters are a JSON schema of an object."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        """As templates take it, which is as OpenAI's clients write it."""
        described = {} if self.description is None else {"description": self.description}
        function = {"name": self.name, **described, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolCallFormat:
    """How a model writes calls.

    Attributes:
        opening: what stands before them, as text or as the control token of that name.
        first, next, end: the text after it in GBNF: the first call, each further one, what ends them. A call
            from its function's name on is the rule `call`. A form without a `next` has one call an answer.
        key: the name of the arguments.
        sign: how a template's call of `probe` is recognized.
        rest: what follows the arguments in GBNF.
        is_first: the opening counts at the beginning of an answer only, as it may well be other text.
    """

    opening: str
    first_call: str
    next_call: str | None
    end: str
    arguments_key: str
    template_pattern: str
    call_end: str = '"}"'
    only_at_start: bool = False


# Mistral's models may give a call an id of their own; nobody hears of it, for ids are the server's.
_ID = r'(", \"id\": \"" [a-zA-Z0-9]{9} "\"")? "}"'
_SPOKEN = ToolCallFormat(
    "<tool_call>",
    r'"\n{\"name\": " call "\n</tool_call>"',
    r'"\n<tool_call>\n{\"name\": " call "\n</tool_call>"',
    "",
    "arguments",
    r'<tool_call>\s*\{"name": "probe", "arguments": \{',
)
TOOL_CALL_FORMATS: Final = (
    _SPOKEN,  # Hermes, Qwen 2.5 and 3
    ToolCallFormat(  # Mistral, up to its tokenizer's version 7
        "[TOOL_CALLS]",
        r'" "? "[{\"name\": " call',
        r'", {\"name\": " call',
        '"]"',
        "arguments",
        r'\[TOOL_CALLS\] ?\[\{"name": "probe", "arguments": \{',
        call_end=_ID,
    ),
    ToolCallFormat(  # Llama 3.1 to 3.3
        '{"name":',
        '" " call',
        None,
        "",
        "parameters",
        r'\{"name": "probe", "parameters": \{',
        only_at_start=True,
    ),
)
PROMPTED_FORMAT: Final = _SPOKEN


def detect_tool_call_format(template: ChatTemplate) -> ToolCallFormat | None:
    """The form of calls that a template writes; None where it knows no tools, or another form."""
    probe = Tool("probe", "told of", {"type": "object", "properties": {}})
    call = {"id": "123456789", "type": "function", "function": {"name": "probe", "arguments": {"a": "b"}}}
    question = {"role": "user", "content": "?"}
    called = {"role": "assistant", "content": "", "tool_calls": [call]}
    gave = {"role": "tool", "content": "!", "name": "probe", "tool_call_id": "123456789"}
    try:
        told = template.render([question], tools=[probe.as_json()])
        written = template.render([question, called, gave], tools=[probe.as_json()])
    except TokenizerError:
        return None
    if "told of" not in told:
        return None
    return next((form for form in TOOL_CALL_FORMATS if re.search(form.template_pattern, written)), None)


def tool_call_grammar(form: ToolCallFormat, tools: Sequence[Tool], *, parallel: bool) -> str:
    """What stands after a form's opening: one call, or several, of any of the tools.

    Raises:
        UsageError: a tool's schema says what a grammar cannot hold to.
    """
    grammar = Grammar()
    return grammar.text(_calls(form, parallel), call=_call(form, tools, grammar))


def tool_call_or_json_grammar(form: ToolCallFormat, tools: Sequence[Tool], schema: Any, *, parallel: bool) -> str:
    """A whole answer: calls with the form's opening, or else the JSON that a schema accepts. They are told
    apart by how they begin: not for a form whose opening `is_first`.

    Raises:
        UsageError: a schema says what a grammar cannot hold to.
    """
    grammar = Grammar()
    root = f"{grammar.value(schema)} | {gbnf.literal(form.opening)} {_calls(form, parallel)}"
    return grammar.text(root, call=_call(form, tools, grammar))


def _calls(form: ToolCallFormat, several: bool) -> str:
    more = f"({form.next_call})*" if several and form.next_call else ""
    return f"{form.first_call} {more} {form.end}"


def _call(form: ToolCallFormat, tools: Sequence[Tool], grammar: Grammar) -> str:
    calls = " | ".join(_named(form, tool, grammar) for tool in tools)
    return f"({calls}) {form.call_end}"


def _named(form: ToolCallFormat, tool: Tool, grammar: Grammar) -> str:
    try:
        return rf'"\"{tool.name}\", \"{form.arguments_key}\": " {grammar.value(tool.parameters)}'
    except UsageError as error:
        raise UsageError(f"the tool {tool.name}: {error.message}", error.hint) from error


def grammar_trigger(form: ToolCallFormat) -> GrammarTrigger:
    """What the grammar of calls waits for in an answer that may hold text before them."""
    return GrammarTrigger(form.opening, form.only_at_start)


def trigger_token(form: ToolCallFormat, model: Model) -> int | None:
    """The control token that is a form's opening, for Sampling.shown; None where it is text."""
    tokens = model.tokenize(form.opening, add_special=False, parse_special=True)
    is_control = len(tokens) == 1 and not model.token_to_piece(tokens[0])
    return tokens[0] if is_control else None


# ---- without a template that knows tools ---------------------------------------------------------

_INSTRUCTION = """\
You can call functions. These are there, each with a JSON schema of its parameters:
<tools>
{tools}
</tools>
To call one, write nothing but a JSON object with its name and its arguments, between tags:
<tool_call>
{{"name": "function name", "arguments": {{"parameter": "value"}}}}
</tool_call>
What it gives comes in the next message, between <tool_response> tags."""


def tools_as_text(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool], tool_prompt_role: Literal["system", "user"] = "system"
) -> list[dict[str, Any]]:
    """The same conversation without tools: they are told in the first message, which is the teller's, and
    results by the user."""
    told: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            content = f"<tool_response>\n{message['content']}\n</tool_response>"
            if told and told[-1]["role"] == "user":  # results of one answer's calls
                told[-1]["content"] += "\n" + content
            else:
                told.append({"role": "user", "content": content})
        else:
            calls = [_in_words(call["function"]) for call in message.get("tool_calls", ())]
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            told.append({**rest, "content": "\n".join(filter(None, [message["content"], *calls]))})
    if tools:
        instruction = _INSTRUCTION.format(tools="\n".join(_json(tool.as_json()) for tool in tools))
        if told[0]["role"] != tool_prompt_role:
            told.insert(0, {"role": tool_prompt_role, "content": instruction})
        else:
            both = [told[0]["content"], instruction]
            told[0]["content"] = "\n\n".join(both if tool_prompt_role == "system" else reversed(both))
    return told


def _in_words(function: Mapping[str, Any]) -> str:
    return f"<tool_call>\n{_json(function)}\n</tool_call>"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# ---- calls out of an answer ----------------------------------------------------------------------


@dataclass(frozen=True)
class TextDelta:
    """Text of an answer that is no call."""

    text: str


@dataclass(frozen=True)
class ToolCallDelta:
    """A call, or more of its arguments: JSON as the model wrote it.

    Attributes:
        index: of the call in the answer.
        name: the function's with the first part, None with the next ones.
    """

    index: int
    name: str | None
    arguments: str


class ToolCallParser:
    """Takes an answer apart while it is written under calls_grammar, or calls_or_json_grammar.

    Args:
        is_open: the opening was written before the answer began.
        is_first: the opening counts at the beginning only, whatever the form has: after it, it is JSON's.

    Attributes:
        calls: how many have begun.
    """

    def __init__(self, form: ToolCallFormat, *, is_open: bool = False, is_first: bool = False) -> None:
        self.call_count = 0
        self._form = form
        self._is_open = is_open
        self._is_first = is_first or form.only_at_start
        self._has_spoken = False
        self._held = ""
        self._head = re.compile(rf'"([\w-]+)", "{form.arguments_key}": ')
        self._arguments: _Object | None = None

    def feed(self, text: str) -> Iterator[TextDelta | ToolCallDelta]:
        """What is certain with this much more of the answer."""
        self._held += text
        if not self._is_open:
            yield from self._said()
        if self._is_open:
            yield from self._called()

    def finish(self) -> Iterator[TextDelta]:
        """What was held back, now that nothing comes any more."""
        if self._held and not self._is_open:
            yield TextDelta(self._held)
        self._held = ""

    def _said(self) -> Iterator[TextDelta]:
        before, opening, rest = self._held.partition(self._form.opening)
        if opening and not self._is_late(before):
            self._is_open, self._held = True, rest
        else:
            size = len(self._held) - partial_match_length(self._held, self._form.opening)
            size = len(self._held) if self._is_late(self._held[:size]) else size
            before, self._held = self._held[:size], self._held[size:]
        if before:
            self._has_spoken = self._has_spoken or not before.isspace()
            yield TextDelta(before)

    def _is_late(self, before: str) -> bool:
        """Whether an opening after this text is none."""
        return self._is_first and (self._has_spoken or bool(before.strip()))

    def _called(self) -> Iterator[ToolCallDelta]:
        while True:
            if self._arguments is None:
                head = self._head.search(self._held)
                if head is None:
                    return
                self._arguments, self._held = _Object(), self._held[head.end() :]
                self.call_count += 1
                yield ToolCallDelta(self.call_count - 1, head[1], "")
            size = self._arguments.take(self._held)
            if size:
                yield ToolCallDelta(self.call_count - 1, None, self._held[:size])
            self._held = self._held[size:]
            if not self._arguments.is_whole:
                return
            self._arguments = None


class _Object:
    """Finds the end of a JSON object that comes in parts."""

    def __init__(self) -> None:
        self.is_whole = False
        self._depth = 0
        self._is_string = self._is_escaped = False

    def take(self, text: str) -> int:
        """How many characters of the text are the object's."""
        for index, character in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_string:
                self._is_escaped = character == "\\"
                self._is_string = character != '"'
            elif character == '"':
                self._is_string = True
            else:
                self._depth += (character in "{[") - (character in "}]")
                if self._depth == 0:
                    self.is_whole = True
                    return index + 1
        return len(text)
