"""A plugin for `llm` (llm.datasette.io): GGUF files as its models, run in llm's own process without a server.

    llm pigguf add smollm2.gguf
    llm -m pigguf/smollm2 "Name a pig."

llm finds this module by the entry point `llm` in pyproject.toml. A model is a GGUF file, or a link to one, in
the folder `pigguf` next to llm's database, and is named like the file. It is loaded for the first prompt and
stays loaded, with its KV cache, for the next ones of the process; long prompts are saved in the prompt cache
on disk. Not supported: tools, attachments and embeddings (llm refuses them itself), and several prompts at
once.
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

from pigguf.cli.progress_bars import progress_bar
from pigguf.errors import PigError, UsageError

if TYPE_CHECKING:
    from pigguf.inference.local_model import LocalModel

_SAMPLING_OPTIONS = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed")


class GGUFModel(llm.Model):
    """A GGUF file as a model of llm, which answers one prompt at a time."""

    can_stream = True
    supports_schema = True

    class Options(llm.Options):
        """The options of `-o NAME VALUE`; None is the default of `pigguf chat`."""

        ctx: int | None = Field(
            default=None,
            ge=1,
            description="Context window in tokens; default: the model's own, or as many tokens as fit in "
            "half of the free memory",
        )
        max_tokens: int | None = Field(default=None, ge=1, description="The most tokens of an answer")
        temperature: float | None = Field(
            default=None, description="0 always takes the most likely token; higher is more random"
        )
        top_p: float | None = Field(
            default=None, description="Sample from the most likely tokens whose probabilities add up to this"
        )
        top_k: int | None = Field(
            default=None, description="Sample from this many of the most likely tokens; 0 is all"
        )
        min_p: float | None = Field(
            default=None, description="Drop tokens less likely than this fraction of the most likely one"
        )
        repeat_penalty: float | None = Field(
            default=None, description="Makes recent tokens less likely; 1 is off"
        )
        seed: int | None = Field(default=None, description="The same seed gives the same answer")
        prompt_cache: bool = Field(
            default=True,
            description="Save the KV cache of long prompts on disk, and restore it the next time",
        )

    def __init__(self, path: Path) -> None:
        self.model_id = f"pigguf/{path.stem}"
        self._path = path
        self._loaded: LocalModel | None = None
        self._loaded_options: tuple[int | None, bool] | None = None  # ctx, prompt_cache

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str]:
        """Yield the text of an answer while it is generated.

        Raises:
            ModelError: for any PigError, with its hint.
        """
        from pigguf.inference.engine import SamplingParams

        with _errors_as(llm.ModelError):
            options = prompt.options
            assert isinstance(options, self.Options)
            values = {name: getattr(options, name) for name in _SAMPLING_OPTIONS}
            sampling = SamplingParams(**{name: value for name, value in values.items() if value is not None})
            model = self._load(options.ctx, options.prompt_cache)
            yield from model.chat(
                [_as_chat_message(message) for message in prompt.messages],
                sampling,
                max_tokens=options.max_tokens,
                json_schema=prompt.schema,
                progress=progress_bar(keep=False),
            )
            response.set_usage(
                input=model.prompt_tokens,
                output=model.answer_tokens,
                details={"cached_tokens": model.cached_tokens},
            )
            response.response_json = {"finish_reason": model.stop_reason}

    def _load(self, ctx: int | None, prompt_cache: bool) -> LocalModel:
        """Return the loaded model, loaded again if the options have changed."""
        from pigguf.inference.local_model import open_model

        if self._loaded is None or self._loaded_options != (ctx, prompt_cache):
            self.close()
            self._loaded = open_model(self._path.resolve(), ctx, prompt_cache=prompt_cache)
            self._loaded_options = (ctx, prompt_cache)
            atexit.register(self.close)
        return self._loaded

    def close(self) -> None:
        """Unload the model; the next prompt loads it again."""
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None
            atexit.unregister(self.close)


def _as_chat_message(message: Message) -> dict[str, str]:
    """Return one of llm's messages as chat templates take it.

    Raises:
        UsageError: it has more than text.
    """
    texts = []
    for part in message.parts:
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif not isinstance(part, ReasoningPart):  # another model's reasoning, which is left out
            raise UsageError(
                f"the conversation has a {type(part).__name__}, and pigguf supports only text",
                "start a new conversation",
            )
    return {"role": message.role, "content": "".join(texts)}


@contextmanager
def _errors_as(error_class: Callable[[str], Exception]) -> Iterator[None]:
    """Raise a PigError as another exception with message and hint: llm shows nothing but its text."""
    try:
        yield
    except PigError as error:
        raise error_class(f"{error.message}\nhint: {error.hint}" if error.hint else error.message) from error


# ---- llm's hooks -----------------------------------------------------------------------------------


@llm.hookimpl
def register_models(register: Callable[[llm.Model], None]) -> None:
    """Register every GGUF file of the folder as a model."""
    for path in sorted(_folder().glob("*.gguf")):
        register(GGUFModel(path))


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """Add the command `llm pigguf` with its subcommands."""

    @cli.group()
    def pigguf() -> None:
        """GGUF files that pigguf runs in llm's own process."""

    @pigguf.command()
    @click.argument("path", type=click.Path(path_type=Path))
    @click.option("--name", help="Name of the model; default: the file's name")
    def add(path: Path, name: str | None) -> None:
        """Register the GGUF file PATH as a model, without copying it.

        \b
        Example:
          llm pigguf add models/smollm2.gguf
          llm -m pigguf/smollm2 "Name a pig."
        """
        with _errors_as(click.ClickException):
            click.echo(_add(path, name or path.stem))

    @pigguf.command()
    @click.argument("name")
    def remove(name: str) -> None:
        """Remove the model NAME from llm; its file stays."""
        with _errors_as(click.ClickException):
            _remove(name.removeprefix("pigguf/"))


def _folder() -> Path:
    return Path(llm.user_dir()) / "pigguf"  # type: ignore[no-untyped-call]


def _add(path: Path, name: str) -> str:
    """Add a link to a file to llm's folder, and return the model's name.

    Raises:
        GGUFError, UnsupportedModel, ReadError: the file cannot be run.
        UsageError: the name is not a valid file name, or another model's.
    """
    from pigguf.gguf_io import read_header

    read_header(path)
    link = _folder() / f"{name}.gguf"
    if link.name != f"{name}.gguf" or name in ("", ".", ".."):
        raise UsageError(f"{name!r} cannot be a model's name", "use letters, digits, dots and dashes")
    _folder().mkdir(exist_ok=True)
    try:
        link.symlink_to(path.resolve())
    except FileExistsError:
        if link.resolve() != path.resolve():
            raise UsageError(
                f"pigguf/{name} already is {link.resolve()}",
                f"use another --name, or run: llm pigguf remove {name}",
            ) from None
    return f"pigguf/{name}"


def _remove(name: str) -> None:
    """Remove a link from llm's folder.

    Raises:
        UsageError: there is no such link.
    """
    links = {path.stem: path for path in _folder().glob("*.gguf") if path.is_symlink()}
    if name not in links:
        known = ", ".join(sorted(links)) or "none"
        raise UsageError(f"`llm pigguf add` made no model {name!r}", f"its models: {known}")
    links[name].unlink()
