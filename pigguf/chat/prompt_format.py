"""A conversation as the tokens a model was trained to see: its chat template, tokenized safely.

Contract: the text of a message can never act as control tokens. A document that holds "<|im_end|>"
is read as those ten characters, and does not end the user's turn. Where no message holds the text of
a special token, the tokens are exactly those of the whole rendered prompt. The same holds for functions,
calls and what they gave.
Left out: the template language (tokenizer/chat_template.py), the cache and the window (chat/conversation.py), how calls
are written (chat/tool_calls.py).
"""

from __future__ import annotations

import logging
import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from pigguf.chat.tool_calls import PROMPTED_FORMAT, ToolCallFormat, Tool, detect_tool_call_format, tools_as_text
from pigguf.errors import TokenizerError
from pigguf.gguf_io.metadata import elements
from pigguf.inference.engine import Model
from pigguf.tokenizer import TokenType
from pigguf.tokenizer.chat_template import ChatTemplate

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant", "content": text}, as OpenAI's clients write them. An assistant's
may have "tool_calls": [{"id", "type": "function", "function": {"name", "arguments": an object}}], and
{"role": "tool", "content": text, "tool_call_id", "name"} is what a call gave."""

# A character that sentencepiece vocabularies spell in bytes, so that it never merges with a neighbour.
_ANCHOR = "\ue000"
_QUESTION: Message = {"role": "user", "content": "?"}

_log = logging.getLogger("pigguf")


class ChatFormat:
    """The way one model wants a conversation written.

    Raises:
        TokenizerError: the model has no chat template, or one that is not understood.
    """

    def __init__(self, model: Model) -> None:
        if not model.chat_template:
            raise TokenizerError(
                f"{model.path} has no chat template",
                "a base model continues text and was not trained to chat; take its instruct or chat version",
            )
        self._model = model
        self._template = ChatTemplate(model.chat_template, bos_token=model.bos_text, eos_token=model.eos_text)

    @property
    def tool_call_format(self) -> ToolCallFormat:
        """How the model is to write calls of functions."""
        return self._own_form or PROMPTED_FORMAT

    @cached_property
    def _own_form(self) -> ToolCallFormat | None:
        form = detect_tool_call_format(self._template)
        if form is None:
            _log.warning(
                "%s: the chat template writes no calls of functions that are known here: the model is told "
                "of them in the %s message",
                self._model.path,
                self._teller,
            )
        return form

    @cached_property
    def _teller(self) -> Literal["system", "user"]:
        """In whose message the model is told of functions in words: some templates refuse a system's."""
        try:
            told = self._template.render([{"role": "system", "content": "told of"}, _QUESTION])
        except TokenizerError:
            return "user"
        return "system" if "told of" in told else "user"

    def tokenize(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        answer_prefix: str = "",
    ) -> list[int]:
        """The conversation as tokens; with `answer_next`, up to where the assistant begins to speak.

        Args:
            tools: functions that the model is told of.
            begun: what its answer begins with; a special token's name is that token here.

        Raises:
            TokenizerError: the template refuses the conversation; the message carries its reason.
        """
        has_calls = bool(tools) or any(m["role"] == "tool" or "tool_calls" in m for m in messages)
        if has_calls and self._own_form is None:
            messages, tools = tools_as_text(messages, tools, self._teller), ()
        quoted = _Quoted(self._special_text)
        rendered = self._template.render(
            [{**quoted.quote(message), "role": message["role"]} for message in messages],
            add_generation_prompt=add_generation_prompt,
            tools=[quoted.quote(tool.as_json()) for tool in tools] or None,
        )
        pieces = quoted.split(rendered + answer_prefix)
        tokens = self._tokenize(pieces[0], special=True)
        for index, piece in enumerate(pieces[1:], start=1):
            tokens += self._as_text(piece) if index % 2 else self._continue(piece, special=True)
        return self._with_bos(tokens)

    def count_tokens(self, text: str) -> int:
        """How many tokens a message's text is, by itself."""
        return len(self._tokenize(text, special=False))

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        return self._model.tokenize(text, add_special=False, parse_special=special)

    def _continue(self, text: str, *, special: bool) -> list[int]:
        """Tokens of a text in the middle of a line: sentencepiece puts a space before a beginning."""
        if not text or not self._model.add_space_prefix:
            return self._tokenize(text, special=special)
        return self._tokenize(_ANCHOR + text, special=special)[len(self._tokenize(_ANCHOR, special=False)) :]

    def _as_text(self, text: str) -> list[int]:
        """Tokens of a special token's text that are not that token."""
        tokens = self._continue(text, special=False)
        if len(tokens) > 1:
            return tokens
        # llama.cpp finds user-defined tokens in plain text too: it must not see this one whole.
        return self._continue(text[:1], special=False) + self._continue(text[1:], special=False)

    def _with_bos(self, tokens: list[int]) -> list[int]:
        """Begin with BOS where the file asks for one and the template did not write it itself."""
        wanted = self._model.tokenize("", add_special=True)[:1]
        if wanted and wanted[0] == self._model.bos and tokens[:1] != wanted:
            return wanted + tokens
        return tokens

    @cached_property
    def _special_text(self) -> re.Pattern[str] | None:
        """Finds every text that would be read as a token which shapes the conversation."""
        texts = {*self._control_texts(), *self._template_texts()} - {""}
        return re.compile(_any_of(texts)) if texts else None

    def _control_texts(self) -> Iterator[str]:
        model = self._model
        for token in range(model.vocab_size):
            if not model.token_to_piece(token):
                yield model.token_to_piece(token, special=True).decode("utf-8", "replace")

    def _template_texts(self) -> Iterator[str]:
        """Added tokens that are no control tokens, but that the template uses as if they were."""
        metadata, template = self._model.file.metadata, self._model.chat_template or ""
        texts = elements(metadata, "tokenizer.ggml.tokens") or ()
        kinds = elements(metadata, "tokenizer.ggml.token_type") or ()
        for text, kind in zip(texts, kinds, strict=False):
            if kind == TokenType.USER_DEFINED and text.strip() and text in template:
                yield text


def _any_of(texts: Iterable[str]) -> str:
    """An expression of any of the texts, the longest that there is, as a tree by their characters: to try
    each of thousands at each place of a long text would take minutes."""
    endings: defaultdict[str, list[str]] = defaultdict(list)
    for text in texts:
        endings[text[:1]].append(text[1:])
    ends_here = endings.pop("", None) is not None
    ways = [re.escape(first) + _any_of(rest) for first, rest in endings.items()]
    if not ways:
        return ""
    return f"(?:{'|'.join(ways)}){'?' if ends_here else ''}" if ends_here or len(ways) > 1 else ways[0]


class _Quoted:
    """Takes special tokens' text out of messages while the template runs, and tells where it was."""

    def __init__(self, special_text: re.Pattern[str] | None) -> None:
        self._special_text = special_text
        self._taken: list[str] = []
        # Letters and digits pass through any template; nobody can write the word before it is drawn.
        self._word = f"Q{secrets.token_hex(8)}Q"

    def quote(self, value: Any) -> Any:
        """A value of JSON with each special token's text in it replaced by a numbered word."""
        if isinstance(value, str):
            return self._special_text.sub(self._take, value) if self._special_text else value
        if isinstance(value, Mapping):
            return {self.quote(key): self.quote(part) for key, part in value.items()}
        if isinstance(value, Sequence):
            return [self.quote(part) for part in value]
        return value

    def _take(self, match: re.Match[str]) -> str:
        self._taken.append(match[0])
        return f"{self._word}{len(self._taken) - 1}Q"

    def split(self, rendered: str) -> list[str]:
        """The rendered prompt in pieces: template and text at even places, text taken out at odd ones."""
        pieces = re.split(f"{self._word}([0-9]+)Q", rendered)
        return [self._taken[int(piece)] if index % 2 else piece for index, piece in enumerate(pieces)]
