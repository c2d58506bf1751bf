"""`pigguf ask` at a terminal: the chat's shell, and under each answer the places it rests on."""

from __future__ import annotations

from pigguf.chat.document_qa import DocumentChat
from pigguf.cli.ask import show_passages, show_places
from pigguf.cli.chat_shell import Shell


class AskShell(Shell):
    """A conversation about documents, until its user ends it."""

    def __init__(self, chat: DocumentChat, verbose: bool, show_context: bool) -> None:
        super().__init__(chat, verbose)
        self._documents = chat
        self._show_context = show_context

    def _ask(self, text: str) -> None:
        said = len(self._documents.messages)
        super()._ask(text)
        if len(self._documents.messages) > said:
            if self._show_context:
                show_passages(self._documents)
            show_places(self._documents)
