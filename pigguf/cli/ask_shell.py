"""`pigguf ask` at a terminal: the chat's shell, with the sources below each answer."""

from __future__ import annotations

from pigguf.chat.document_qa import DocumentChat
from pigguf.cli.answer_output import note_passages, print_citations
from pigguf.cli.chat_shell import ChatShell


class AskShell(ChatShell):
    """A conversation about documents at a terminal."""

    def __init__(self, chat: DocumentChat, verbose: bool, show_context: bool) -> None:
        super().__init__(chat, verbose)
        self._document_chat = chat
        self._show_context = show_context

    def _ask(self, text: str) -> None:
        n_messages = len(self._document_chat.messages)
        super()._ask(text)
        if len(self._document_chat.messages) > n_messages:
            if self._show_context:
                note_passages(self._document_chat)
            print_citations(self._document_chat)
