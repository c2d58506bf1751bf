"""GGUF files as models of `llm` (llm.datasette.io), run in its own process, without a server.

    llm pigguf add smollm2.gguf
    llm -m pigguf/smollm2 "Name a pig."

llm finds this module by the entry point `llm` of pyproject.toml. A model is a file, or a link to one, in the
folder `pigguf` beside llm's own database, and has its name. It is loaded with the first question and stays
for the next ones of the process, as does what they share; what is long is kept on disk for other processes
(sessions/). Left out: tools, attachments and embeddings, which llm refuses itself; several texts at once.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import llm
from llm.parts import Message, ReasoningPart, TextPart
from pydantic import Field

from pigguf.errors import PigError, UsageError

if TYPE_CHECKING:
    from pigguf.inference.local_model import LocalModel

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed")


class GGUFModel(llm.Model):
    """One file. Its answers to one question at a time are computed when they are asked for."""

    can_stream = True
    supports_schema = True

    class Options(llm.Options):
        """What `-o NAME VALUE` may say; None is the default that `pigguf chat` has."""

        ctx: int | None = Field(
            default=None,
            ge=1,
            description="Window in tokens; default: the file's, or what half of the free memory holds",
        )
        max_tokens: int | None = Field(default=None, ge=1, description="Most tokens of an answer")
        temperature: float | None = Field(
            default=None, description="0 takes the likeliest token, higher is more random"
        )
        top_p: float | None = Field(
            default=None, description="Keep the likeliest tokens that reach this probability"
        )
        top_k: int | None = Field(
            default=None, description="Keep so many of the likeliest tokens; 0 keeps all"
        )
        min_p: float | None = Field(
            default=None, description="Drop tokens less likely than this fraction of the likeliest"
        )
        repeat_penalty: float | None = Field(
            default=None, description="Makes tokens seen lately less likely; 1 is off"
        )
        seed: int | None = Field(default=None, description="The same seed gives the same answer")
        sessions: bool = Field(
            default=True, description="Keep on disk what was read, and go on from it the next time"
        )

    def __init__(self, path: Path) -> None:
        self.model_id = f"pigguf/{path.stem}"
        self._path = path
        self._opened: LocalModel | None = None
        self._settings: tuple[int | None, bool] | None = None

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        """The answer's text as it is drawn.

        Raises:
            ModelError: of any PigError, with its hint.
        """
        from pigguf.cli import render  # rich is for a terminal, and not for every call of llm
        from pigguf.inference.engine import SamplingParams

        with _told(llm.ModelError):
            options = prompt.options
            assert isinstance(options, self.Options)
            given = {name: getattr(options, name) for name in _SAMPLING}
            sampling = SamplingParams(**{name: value for name, value in given.items() if value is not None})
            model = self._open(options.ctx, options.sessions)
            yield from model.chat(
                [_plain(message) for message in prompt.messages],
                sampling,
                max_tokens=options.max_tokens,
                json_schema=prompt.schema,
                progress=render.progress(keep=False),
            )
            response.set_usage(
                input=model.prompt_tokens,
                output=model.answer_tokens,
                details={"cached_tokens": model.cached_tokens},
            )
            response.response_json = {"finish_reason": model.stop_reason}

    def _open(self, ctx: int | None, sessions: bool) -> LocalModel:
        """The model with such a window, opened anew where another one was."""
        from pigguf.inference.local_model import open_model

        if self._opened is None or self._settings != (ctx, sessions):
            self.close()
            self._opened, self._settings = (
                open_model(self._path.resolve(), ctx, prompt_cache=sessions),
                (ctx, sessions),
            )
            atexit.register(self.close)
        return self._opened

    def close(self) -> None:
        """Free everything; the next question loads it again."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
            atexit.unregister(self.close)


def _plain(message: Message) -> dict[str, str]:
    """A message of llm's as templates have them.

    Raises:
        UsageError: there is more in it than text.
    """
    texts = []
    for part in message.parts:
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif not isinstance(part, ReasoningPart):  # another model's, which is not said
            raise UsageError(
                f"the conversation has a {type(part).__name__}, and pigguf takes text alone",
                "begin a new conversation",
            )
    return {"role": message.role, "content": "".join(texts)}


@contextmanager
def _told(kind: Callable[[str], Exception]) -> Iterator[None]:
    """Failures as llm shows them: one exception, whose text is all that a person gets to read."""
    try:
        yield
    except PigError as error:
        raise kind(f"{error.message}\nhint: {error.hint}" if error.hint else error.message) from error


# ---- what llm asks for -----------------------------------------------------------------------------


@llm.hookimpl
def register_models(register: Callable[[llm.Model], None]) -> None:
    for path in sorted(_folder().glob("*.gguf")):
        register(GGUFModel(path))


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    @cli.group()
    def pigguf() -> None:
        """GGUF files that pigguf runs in llm's own process"""

    @pigguf.command()
    @click.argument("path", type=click.Path(path_type=Path))
    @click.option("--name", help="How the model is called; default: the file's name")
    def add(path: Path, name: str | None) -> None:
        """Make the GGUF file PATH a model, where it lies

        \b
        Example:
          llm pigguf add models/smollm2.gguf
          llm -m pigguf/smollm2 "Name a pig."
        """
        with _told(click.ClickException):
            click.echo(_add(path, name or path.stem))

    @pigguf.command()
    @click.argument("name")
    def remove(name: str) -> None:
        """Forget the model NAME; its file stays"""
        with _told(click.ClickException):
            _remove(name.removeprefix("pigguf/"))


def _folder() -> Path:
    return Path(llm.user_dir()) / "pigguf"  # type: ignore[no-untyped-call]


def _add(path: Path, name: str) -> str:
    """Link to a file from llm's folder; the model's name.

    Raises:
        GGUFError, UnsupportedModel, ReadError: the file cannot be run.
        UsageError: the name is no file's, or another model's.
    """
    from pigguf.gguf_io import read_header

    read_header(path)
    link = _folder() / f"{name}.gguf"
    if link.name != f"{name}.gguf" or name in ("", ".", ".."):
        raise UsageError(f"{name!r} cannot be a model's name", "take letters, digits, dots and dashes")
    _folder().mkdir(exist_ok=True)
    try:
        link.symlink_to(path.resolve())
    except FileExistsError:
        if link.resolve() != path.resolve():
            raise UsageError(
                f"pigguf/{name} is {link.resolve()} already",
                f"give another name with --name, or run: llm pigguf remove {name}",
            ) from None
    return f"pigguf/{name}"


def _remove(name: str) -> None:
    """
    Raises:
        UsageError: there is no such link.
    """
    links = {path.stem: path for path in _folder().glob("*.gguf") if path.is_symlink()}
    if name not in links:
        known = ", ".join(sorted(links)) or "none"
        raise UsageError(
            f"there is no model {name!r} that `llm pigguf add` made", f"these are there: {known}"
        )
    links[name].unlink()
