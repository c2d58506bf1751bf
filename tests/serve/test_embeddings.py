"""/v1/embeddings through OpenAI's client: vectors equal transformers' pooled states, and errors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from support.running_server import RunningServer, running_server, wait_until
from support.tiny_checkpoints import make_checkpoint
from support.tiny_gguf import WIDTH, text_tokens, write_tiny

import pigguf
from pigguf.errors import DoesNotFit, GGUFError, Interrupted, UsageError
from pigguf.gguf_io.metadata import u32
from pigguf.inference.engine import ContextOptions, Model
from pigguf.inference.engine.embeddings import embed, pooling_type
from pigguf.inference.run_config import RunConfig
from pigguf.serve.errors import RequestRefused
from pigguf.serve.limits import ServerLimits
from pigguf.serve.model_host import ModelHost
from pigguf.serve.openai_requests import parse_embedding_request
from pigguf.serve.service import ModelService

MEAN, CLS, LAST, RANK = 1, 2, 3, 4
WINDOW = 512


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = {"llama.pooling_type": u32(MEAN), "llama.context_length": u32(WINDOW)}
    return write_tiny(tmp_path_factory.mktemp("embed") / "tiny.gguf", keys)


@pytest.fixture(scope="module")
def served(path: Path) -> Iterator[RunningServer]:
    with running_server(path, "--slots", "1", "--no-prompt-cache") as served:
        yield served


def ask(served: RunningServer, given: Any, **more: Any) -> Any:
    return served.client().embeddings.create(model="tiny", input=given, **more)


def vectors(answer: Any) -> NDArray[np.float64]:
    return np.array([one.embedding for one in answer.data])


def test_vectors_of_texts(served: RunningServer) -> None:
    texts = ["Pigs fly.", "Pigs do not fly at all.", "Pigs fly."]
    answer = ask(served, texts)
    computed = vectors(answer)
    assert computed.shape == (3, WIDTH)
    assert [one.index for one in answer.data] == [0, 1, 2]
    assert np.linalg.norm(computed, axis=1) == pytest.approx(1, abs=1e-5)
    assert computed[0].tolist() == computed[2].tolist()
    assert computed[0] @ computed[1] < 0.999
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, texts)) + 3 * 2
    as_list = ask(served, texts[0], encoding_format="float", dimensions=WIDTH)
    assert vectors(as_list)[0] == pytest.approx(computed[0], abs=1e-7)
    with Model.open(served_path(served), vocab_only=True) as model:
        tokens = [model.tokenize(text) for text in texts[:2]]
    assert vectors(ask(served, tokens)).tolist() == computed[:2].tolist()
    assert vectors(ask(served, tokens[1])).tolist() == computed[1:2].tolist()


def served_path(served: RunningServer) -> str:
    arguments = served.process.args
    assert isinstance(arguments, list)
    return next(str(argument) for argument in arguments if str(argument).endswith(".gguf"))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"input": ""}, None),
        ({"input": []}, "input must be a string"),
        ({"input": "x", "dimensions": WIDTH - 1}, f"a vector has {WIDTH}"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format must be float or base64"),
        ({"input": "x", "truncate": True}, "'truncate' is unknown"),
        ({"input": "x", "model": "other"}, "no model 'other'"),
        ({"input": [[1, 10**6]]}, "1000000"),
        ({"input": ["x"] * 2049}, "2,048 texts at most"),
    ],
    ids=["empty", "none", "dimensions", "format", "unknown", "model", "token", "many"],
)
def test_invalid_requests_are_refused(
    served: RunningServer, wrong: dict[str, Any], reason: str | None
) -> None:
    given = {"model": "tiny", **wrong}
    more = {"extra_body": {"truncate": given.pop("truncate")}} if "truncate" in given else {}
    if reason is None:  # the text is only BOS
        assert vectors(served.client().embeddings.create(**given)).shape == (1, WIDTH)
        return
    with pytest.raises(openai.APIStatusError) as refused:
        served.client().embeddings.create(**given, **more)
    assert reason.replace(",", "") in refused.value.message.replace(",", "")
    assert refused.value.status_code == (404 if "model" in wrong else 400)


def test_a_text_past_the_window_is_refused_with_counts(served: RunningServer) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(served, ["short", "x" * WINDOW])
    body: Any = refused.value.body
    assert body["code"] == "context_length_exceeded"
    assert body["context_length"] == WINDOW < body["prompt_tokens"]
    assert vectors(ask(served, text_tokens(WINDOW))).shape == (1, WIDTH)


def test_completions_continue_beside_embeddings(served: RunningServer) -> None:
    client = served.client()

    def answer() -> str:
        return (
            client.completions.create(model="tiny", prompt="Once", max_tokens=200, temperature=0)
            .choices[0]
            .text
        )

    alone = answer()
    stream = client.completions.create(
        model="tiny", prompt="Once", max_tokens=200, temperature=0, stream=True
    )
    texts = [next(iter(stream)).choices[0].text]
    computed = vectors(ask(served, ["some text"] * 20))
    texts += [chunk.choices[0].text for chunk in stream]
    assert "".join(texts) == alone
    assert (computed == computed[0]).all()


def test_the_model_list_says_whether_there_are_embeddings(served: RunningServer, tmp_path: Path) -> None:
    assert served.client().models.list().data[0].embeddings is True  # type: ignore[attr-defined]
    with running_server(write_tiny(tmp_path / "tiny.gguf"), "--slots", "1", "--no-prompt-cache") as other:
        assert other.client().models.list().data[0].embeddings is False  # type: ignore[attr-defined]
        with pytest.raises(openai.BadRequestError, match="gives no embeddings: its file has no llama"):
            ask(other, "x")


# ---- the vectors ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooling_config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, MEAN),
        ({"pooling_mode": "cls"}, CLS),
        ({"pooling_mode_lasttoken": True}, LAST),
    ],
)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_vectors_are_transformers_pooled_states(
    family: str, pooling_config: dict[str, Any], pooling: int, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    checkpoint = make_checkpoint(tmp_path / "checkpoint", family)
    write_pooling_config(checkpoint, pooling_config)
    pigguf.convert(checkpoint, tmp_path / "tiny.gguf", type="F32")
    reference = AutoModel.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokens = [int(token) for token in np.random.default_rng(pooling).integers(3, 200, 60)]
    with torch.no_grad():
        states = reference(torch.tensor([tokens])).last_hidden_state[0].numpy()
    expected = {MEAN: states.mean(axis=0), CLS: states[0], LAST: states[-1]}[pooling]
    with Model.open(tmp_path / "tiny.gguf") as model:
        options = ContextOptions(batch=16, cache_k="f32", cache_v="f32")
        [short, computed] = embed(model, [tokens[:7], tokens], options)
    # attention is computed in 16 bits
    assert computed @ expected / np.linalg.norm(expected) == pytest.approx(1, abs=1e-5)
    assert (short @ expected / np.linalg.norm(expected) > 0.9999) == (pooling == CLS)


def write_pooling_config(checkpoint: Path, pooling_config: dict[str, Any]) -> None:
    (checkpoint / "1_Pooling").mkdir()
    config = {"word_embedding_dimension": 64, **pooling_config, "include_prompt": True}
    (checkpoint / "1_Pooling" / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "pooling_config",
    [{"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, {"pooling_mode": "max"}],
)
def test_a_pooling_that_gguf_cannot_express_is_noted(pooling_config: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    write_pooling_config(checkpoint, pooling_config)
    plan = pigguf.convert(checkpoint, tmp_path / "tiny.gguf", type="F32").plan
    assert "llama.pooling_type" not in plan.metadata
    assert any("max" in note and "gives no embeddings" in note for note in plan.notes)


def test_vectors_of_a_changed_file_are_not_sent(path: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copy(path, tmp_path / "tiny.gguf"))
    with ModelHost(copied, RunConfig(prompt_cache=False)) as host:
        service = ModelService(host, ServerLimits())
        request = parse_embedding_request({"input": [[3, 4]]})
        with pytest.raises(GGUFError, match="was written to while it was in use"), host.borrow_context():
            os.utime(copied, ns=(0, 0))
        wait_until(lambda: host.failure is not None)
        with pytest.raises(RequestRefused, match="the model is unavailable"):
            service.embed(request, service.embedding_inputs(request), lambda: False)


def test_a_text_that_does_not_fit_into_memory_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pigguf.inference.engine.embeddings.available_memory", lambda: 1 << 20)
    monkeypatch.setattr("pigguf.inference.engine.embeddings._MIN_CHECKED_LENGTH", 100)
    with Model.open(path) as model:
        assert embed(model, [text_tokens(50)]).shape == (1, WIDTH)
        with pytest.raises(DoesNotFit, match="a text of 500 tokens takes"):
            embed(model, [text_tokens(500)])


def test_interrupted_and_unsupported_embeddings(path: Path, tmp_path: Path) -> None:
    with Model.open(path) as model, pytest.raises(Interrupted):
        embed(model, [text_tokens(300)], should_stop=lambda: True)
    ranking = write_tiny(tmp_path / "rank.gguf", {"llama.pooling_type": u32(RANK)})
    with Model.open(ranking) as model:
        assert pooling_type(model) is None
        with pytest.raises(UsageError, match=r"its llama\.pooling_type is not one of mean, cls, last"):
            embed(model, [text_tokens(3)])
