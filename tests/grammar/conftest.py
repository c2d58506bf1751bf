"""A model whose vocabulary is bytes, so that any text can be offered to a grammar."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support.tiny_gguf import FIRST_BYTE, text_tokens, write_tiny

from pigguf.inference.engine import Context, ContextOptions, Model, SamplingParams, Session
from pigguf.inference.engine.grammar_sampler import GrammarSampler


@pytest.fixture(scope="session")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    path = write_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")
    with (
        Model.open(path) as model,
        Context(model, ContextOptions(length=1024)) as context,
        context.sequence() as session,
    ):
        yield session


@pytest.fixture
def write(session: Session) -> Callable[[str, int], str]:
    """(grammar, seed) -> what random weights write under it, which is strict UTF-8."""

    def written(grammar: str, seed: int) -> str:
        session.set_prompt(text_tokens(5, seed))
        sampling = SamplingParams(temperature=2.0, seed=seed, top_k=0, top_p=1, min_p=0, grammar=grammar)
        data = b"".join(map(session.context.model.token_to_piece, session.generate(sampling)))
        assert session.stop_reason == "end"
        return data.decode()

    return written


@pytest.fixture
def accepts(session: Session) -> Callable[[str, str], bool]:
    """(grammar, text) -> whether the grammar lets this text through, and lets it end."""

    def accepts(grammar: str, text: str) -> bool:
        state = GrammarSampler(session.context.model, grammar)
        try:
            for byte in text.encode():
                if not state.allows(FIRST_BYTE + byte):
                    return False
                state.accept(FIRST_BYTE + byte)
            return state.allows(2)  # </s>
        finally:
            state.free()

    return accepts
