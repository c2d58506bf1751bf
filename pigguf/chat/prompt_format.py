"""ChatFormat: applies a model's chat template to a conversation, and tokenizes the prompt safely.

The text of a message can never act as control tokens: a document with "<|im_end|>" is tokenized as those ten
characters, and does not end the user's turn. The same is true for tools, tool calls and their results. If no
text contains a special token's, the tokens are exactly those of the whole rendered prompt.
Not here: the template language (tokenizer/chat_template.py), the KV cache and the context window
(conversation.py), how tool calls are written (tool_calls.py).
"""

from __future__ import annotations

import logging
import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from pigguf.chat.tool_calls import (
    PROMPTED_FORMAT,
    Tool,
    ToolCallFormat,
    detect_tool_call_format,
    tools_as_text,
)
from pigguf.errors import TokenizerError
from pigguf.gguf_io.metadata import get_array
from pigguf.inference.engine import Model
from pigguf.tokenizer import TokenType
from pigguf.tokenizer.chat_template import ChatTemplate

Message = Mapping[str, Any]
"""A chat message: {"role": "system" | "user" | "assistant", "content": text}, as in OpenAI's API.

An assistant's message may have "tool_calls": [{"id", "type": "function", "function": {"name", "arguments": an
object}}]. The result of a call is {"role": "tool", "content": text, "tool_call_id", "name"}.
"""

# A character that sentencepiece vocabularies encode as bytes, so it never merges with the text around it.
_ANCHOR = "\ue000"
_QUESTION: Message = {"role": "user", "content": "?"}

_log = logging.getLogger("pigguf")


class ChatFormat:
    """Turns conversations into prompts for one model.

    Raises:
        TokenizerError: the model has no chat template, or one that is not supported.
    """

    def __init__(self, model: Model) -> None:
        if not model.chat_template:
            raise TokenizerError(
                f"{model.path} has no chat template",
                "a base model was not trained to chat: use its instruct or chat version",
            )
        self._model = model
        self._template = ChatTemplate(model.chat_template, bos_token=model.bos_text, eos_token=model.eos_text)

    @property
    def tool_call_format(self) -> ToolCallFormat:
        """The format in which the model writes tool calls."""
        return self._template_tool_format or PROMPTED_FORMAT

    @cached_property
    def _template_tool_format(self) -> ToolCallFormat | None:
        """The format in which the chat template writes tool calls; None if it has none that is supported."""
        call_format = detect_tool_call_format(self._template)
        if call_format is None:
            _log.warning(
                "%s: the chat template has no supported format of tool calls: tools are described in the %s "
                "message",
                self._model.path,
                self._tool_prompt_role,
            )
        return call_format

    @cached_property
    def _tool_prompt_role(self) -> Literal["system", "user"]:
        """The role of the message that describes tools: some templates refuse or ignore system messages."""
        probe = "probe description"
        try:
            rendered = self._template.render([{"role": "system", "content": probe}, _QUESTION])
        except TokenizerError:
            return "user"
        return "system" if probe in rendered else "user"

    def tokenize(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        add_generation_prompt: bool = True,
        answer_prefix: str = "",
    ) -> list[int]:
        """Apply the chat template to a conversation, and return the prompt's token ids.

        Args:
            messages: the conversation.
            tools: functions that are described to the model.
            add_generation_prompt: whether to end the prompt where the assistant's answer begins.
            answer_prefix: text that the answer begins with; the name of a special token becomes that token.

        Raises:
            TokenizerError: the template refuses the conversation; the message has its reason.
        """
        uses_tools = bool(tools) or any(
            message["role"] == "tool" or "tool_calls" in message for message in messages
        )
        if uses_tools and self._template_tool_format is None:
            messages, tools = tools_as_text(messages, tools, self._tool_prompt_role), ()
        placeholders = _SpecialTextPlaceholders(self._special_text)
        rendered = self._template.render(
            [{**placeholders.insert(message), "role": message["role"]} for message in messages],
            add_generation_prompt=add_generation_prompt,
            tools=[placeholders.insert(tool.as_json()) for tool in tools] or None,
        )
        segments = placeholders.split(rendered + answer_prefix)
        tokens = self._tokenize(segments[0], special=True)
        for index, segment in enumerate(segments[1:], start=1):
            is_special_text = index % 2 == 1
            tokens += (
                self._tokenize_as_text(segment)
                if is_special_text
                else self._tokenize_continuation(segment, special=True)
            )
        return self._with_bos(tokens)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a message's text has, without the template."""
        return len(self._tokenize(text, special=False))

    def _tokenize(self, text: str, *, special: bool) -> list[int]:
        return self._model.tokenize(text, add_special=False, parse_special=special)

    def _tokenize_continuation(self, text: str, *, special: bool) -> list[int]:
        """Tokenize text that continues a line, without the space that sentencepiece puts before a text."""
        if not text or not self._model.add_space_prefix:
            return self._tokenize(text, special=special)
        return self._tokenize(_ANCHOR + text, special=special)[len(self._tokenize(_ANCHOR, special=False)) :]

    def _tokenize_as_text(self, text: str) -> list[int]:
        """Tokenize the text of a special token without using that token."""
        tokens = self._tokenize_continuation(text, special=False)
        if len(tokens) > 1:
            return tokens
        # llama.cpp finds user-defined tokens in plain text too, so it is tokenized in two parts.
        first = self._tokenize_continuation(text[:1], special=False)
        return first + self._tokenize_continuation(text[1:], special=False)

    def _with_bos(self, tokens: list[int]) -> list[int]:
        """Add the BOS token if the file asks for one and the template has not written it."""
        bos = self._model.tokenize("", add_special=True)[:1]
        if bos and bos[0] == self._model.bos and tokens[:1] != bos:
            return bos + tokens
        return tokens

    @cached_property
    def _special_text(self) -> re.Pattern[str] | None:
        """Matches the text of every token that structures the conversation."""
        texts = {*self._control_token_texts(), *self._template_token_texts()} - {""}
        return re.compile(_trie_pattern(texts)) if texts else None

    def _control_token_texts(self) -> Iterator[str]:
        model = self._model
        for token in range(model.vocab_size):
            if not model.token_to_piece(token):
                yield model.token_to_piece(token, special=True).decode("utf-8", "replace")

    def _template_token_texts(self) -> Iterator[str]:
        """Yield added tokens that are not control tokens, but that the template uses like control tokens."""
        metadata, template = self._model.file.metadata, self._model.chat_template or ""
        texts = get_array(metadata, "tokenizer.ggml.tokens") or ()
        token_types = get_array(metadata, "tokenizer.ggml.token_type") or ()
        for text, token_type in zip(texts, token_types, strict=False):
            if token_type == TokenType.USER_DEFINED and text.strip() and text in template:
                yield text


def _trie_pattern(texts: Iterable[str]) -> str:
    """Return a regular expression that matches the longest of the texts, as a trie of their characters.

    A plain alternation of thousands of texts would take minutes on a long document.
    """
    suffixes: defaultdict[str, list[str]] = defaultdict(list)
    for text in texts:
        suffixes[text[:1]].append(text[1:])
    may_end = suffixes.pop("", None) is not None
    branches = [re.escape(first) + _trie_pattern(rest) for first, rest in suffixes.items()]
    if not branches:
        return ""
    if may_end:
        return f"(?:{'|'.join(branches)})?"
    return f"(?:{'|'.join(branches)})" if len(branches) > 1 else branches[0]


class _SpecialTextPlaceholders:
    """Replaces special tokens' text in messages by placeholders while the template is rendered."""

    def __init__(self, special_text: re.Pattern[str] | None) -> None:
        self._special_text = special_text
        self._replaced: list[str] = []
        # Letters and digits pass through any template unchanged; a random word cannot be in a message.
        self._word = f"Q{secrets.token_hex(8)}Q"

    def insert(self, value: Any) -> Any:
        """Return a JSON value with a numbered placeholder for each special token's text in its strings."""
        if isinstance(value, str):
            return self._special_text.sub(self._replace, value) if self._special_text else value
        if isinstance(value, Mapping):
            return {self.insert(key): self.insert(item) for key, item in value.items()}
        if isinstance(value, Sequence):
            return [self.insert(item) for item in value]
        return value

    def _replace(self, match: re.Match[str]) -> str:
        self._replaced.append(match[0])
        return f"{self._word}{len(self._replaced) - 1}Q"

    def split(self, rendered: str) -> list[str]:
        """Split a rendered prompt at its placeholders.

        Returns:
            At even indices the prompt's text, at odd ones the special tokens' text that was replaced.
        """
        segments = re.split(f"{self._word}([0-9]+)Q", rendered)
        return [
            self._replaced[int(segment)] if index % 2 else segment for index, segment in enumerate(segments)
        ]
