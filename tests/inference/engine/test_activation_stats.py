"""What goes into weight matrices, summed in the engine, against the inputs of transformers' own layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_checkpoints import make_checkpoint
from support.tiny_gguf import text_tokens, write_tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import pigguf
from pigguf.errors import ContextOverflow, EngineError, PigError, TextError, UsageError
from pigguf.gguf_io import TensorData, TensorType, read_header
from pigguf.gguf_io.metadata import f32
from pigguf.inference.engine import Context, ContextOptions, Model
from pigguf.inference.engine.activation_stats import ActivationCollector
from pigguf.progress import SilentProgress
from pigguf.quantization import read_imatrix

WINDOW = 32
MODULES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture
def text(tmp_path: Path, novel: str) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(novel[:1500], encoding="utf-8")
    return path


def converted(tmp_path: Path, kind: str, type: str = "F32", **config: Any) -> tuple[Path, Path]:
    checkpoint = make_checkpoint(tmp_path / "checkpoint", kind, **config)
    pigguf.convert(checkpoint, tmp_path / "model.gguf", type=type)
    return checkpoint, tmp_path / "model.gguf"


def stored(file: Path, name: str) -> np.ndarray[Any, Any]:
    header = read_header(file)
    tensor = header.tensors[name]
    with TensorData(header) as data:
        return data.rows(tensor, 0, tensor.rows)


def table(file: Path, name: str) -> np.ndarray[Any, Any]:
    return stored(file, name).view(np.float32).reshape(read_header(file).tensors[name].shape)


def test_sums_are_those_of_transformers_inputs(tmp_path: Path, text: Path) -> None:
    checkpoint, gguf = converted(tmp_path, "llama")
    result = pigguf.imatrix(gguf, [text], tmp_path / "matrix.gguf", window=WINDOW, max_windows=3)
    assert (result.windows, result.window, result.tensors) == (3, WINDOW, 14)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    squares: dict[str, torch.Tensor] = {}
    for layer, block in enumerate(model.model.layers):
        for module, stem in MODULES.items():
            name = f"blk.{layer}.{stem}.weight"

            def add(_: Any, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
                total = inputs[0][0].double().square().sum(0)
                squares[name] = squares.get(name, torch.zeros_like(total)) + total

            block.get_submodule(module).register_forward_pre_hook(add)
    tokens = AutoTokenizer.from_pretrained(checkpoint)(text.read_text())["input_ids"][: 3 * WINDOW]
    with torch.no_grad():
        for start in range(0, len(tokens), WINDOW):
            model(torch.tensor([tokens[start : start + WINDOW]]))
    for name, expected in squares.items():
        measured = table(result.path, f"{name}.in_sum2").ravel()
        np.testing.assert_allclose(measured, expected.numpy(), rtol=5e-3, err_msg=name)  # an f16 KV cache
        assert table(result.path, f"{name}.counts").ravel() == [3 * WINDOW]


def test_sums_of_experts_are_of_what_transformers_sends_to_each(tmp_path: Path, text: Path) -> None:
    checkpoint, gguf = converted(tmp_path, "mixtral")
    result = pigguf.imatrix(gguf, [text], tmp_path / "matrix.gguf", window=WINDOW, max_windows=2)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    experts = len(model.model.layers[0].mlp.experts.down_proj)
    squares: dict[str, np.ndarray[Any, Any]] = {}
    counts = np.zeros(experts)

    def add(block: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        hidden, chosen, _ = inputs
        for expert in range(experts):
            sent = hidden[(chosen == expert).any(dim=1)]
            gate, up = (sent @ block.gate_up_proj[expert].T).chunk(2, dim=-1)
            for stem, values in (("gate", sent), ("up", sent), ("down", block.act_fn(gate) * up)):
                whole = squares.setdefault(f"ffn_{stem}_exps", np.zeros((experts, values.shape[1])))
                whole[expert] += values.double().square().sum(0).numpy()
            counts[expert] += len(sent)

    model.model.layers[0].mlp.experts.register_forward_pre_hook(add)
    tokens = AutoTokenizer.from_pretrained(checkpoint)(text.read_text())["input_ids"][: 2 * WINDOW]
    with torch.no_grad():
        for start in range(0, len(tokens), WINDOW):
            model(torch.tensor([tokens[start : start + WINDOW]]))
    assert len(set(counts)) > 1
    for stem, expected in squares.items():
        np.testing.assert_array_equal(table(result.path, f"blk.0.{stem}.weight.counts").ravel(), counts)
        measured = table(result.path, f"blk.0.{stem}.weight.in_sum2")
        np.testing.assert_allclose(measured, expected, rtol=5e-3, atol=1e-4 * expected.max(), err_msg=stem)


def test_a_window_of_more_than_a_batch_is_counted_whole(tmp_path: Path, novel: str) -> None:
    gguf = write_tiny(tmp_path / "model.gguf")
    (tmp_path / "text.txt").write_text(novel[:1200], encoding="utf-8")
    result = pigguf.imatrix(gguf, [tmp_path / "text.txt"], tmp_path / "matrix.gguf", window=520)
    assert result.windows == 2
    assert table(result.path, "blk.1.ffn_down.weight.counts").ravel() == [2 * 520]


def test_a_batch_that_is_given_up_and_done_again_counts_once(tmp_path: Path) -> None:
    tokens, every = text_tokens(64), range(64)
    with Model.open(write_tiny(tmp_path / "model.gguf")) as model:
        sums = []
        for given_up in ((), (5, 20, 30)):  # at which question; of forty in a batch
            collector = ActivationCollector()
            with Context(model, ContextOptions(length=64, threads=1), collector) as context:
                for after in given_up:
                    asked = iter(range(after))
                    assert not context.decode(
                        0, tokens, 0, every, lambda asked=asked: next(asked, None) is None
                    )
                    assert collector.sums == {}
                assert context.decode(0, tokens, 0, every)
            sums.append(collector.sums)
    assert sums[0].keys() == sums[1].keys()
    assert len(sums[0]) == 14
    for name, once in sums[0].items():
        np.testing.assert_array_equal(sums[1][name].squares, once.squares)
        assert (once.counts, sums[1][name].counts) == ([64], [64])


def test_inputs_that_are_not_numbers_are_refused_by_tensor(tmp_path: Path, text: Path) -> None:
    zeros = {"token_embd.weight": TensorType.F16}  # whose norm, with nothing added under the root, is 0 / 0
    gguf = write_tiny(tmp_path / "m.gguf", {"llama.attention.layer_norm_rms_epsilon": f32(0.0)}, zeros)
    with pytest.raises(
        EngineError, match=r"an input of blk\.0\.attn_\w\.weight is not a finite number"
    ) as caught:
        pigguf.imatrix(gguf, [text], tmp_path / "matrix.gguf", window=WINDOW)
    assert caught.value.hint
    assert not (tmp_path / "matrix.gguf").exists()


def test_an_interrupted_measurement_leaves_what_was_there(tmp_path: Path, text: Path) -> None:
    class Interrupter(SilentProgress):
        advanced = 0.0

        def advance(self, amount: float) -> None:
            self.advanced += amount
            if self.advanced > 200:  # the loading's hundred percent, and some windows
                raise KeyboardInterrupt

    matrix = tmp_path / "matrix.gguf"
    matrix.write_text("before")
    gguf = write_tiny(tmp_path / "model.gguf")
    with pytest.raises(KeyboardInterrupt):
        pigguf.imatrix(gguf, [text], matrix, window=WINDOW, progress=Interrupter())
    assert matrix.read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"matrix.gguf", "model.gguf", "text.txt"}


def test_the_matrix_makes_low_bit_types_and_is_named_in_the_file(tmp_path: Path, text: Path) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 256}
    checkpoint, gguf = converted(tmp_path, "llama", **wide)
    with pytest.raises(UsageError) as caught:
        pigguf.convert(checkpoint, tmp_path / "iq2.gguf", type="IQ2_XXS")
    assert "pigguf imatrix" in (caught.value.hint or "")
    matrix = pigguf.imatrix(gguf, [text], tmp_path / "matrix.gguf", window=WINDOW).path
    assert set(read_imatrix(matrix).weights) == {
        f"blk.{layer}.{stem}.weight" for layer in range(2) for stem in MODULES.values()
    }
    pigguf.convert(checkpoint, tmp_path / "iq2.gguf", type="IQ2_XXS", imatrix=matrix)
    pigguf.quantize(gguf, tmp_path / "also.gguf", type="IQ2_XXS", imatrix=matrix)
    one, other = read_header(tmp_path / "iq2.gguf"), read_header(tmp_path / "also.gguf")
    assert one.metadata["quantize.imatrix.file"].value == str(matrix)
    assert one.metadata["quantize.imatrix.entries_count"].value == 14
    assert pigguf.diff(one.path, other.path).same
    pigguf.convert(checkpoint, tmp_path / "plain.gguf", type="Q4_K_M")
    pigguf.convert(checkpoint, tmp_path / "weighted.gguf", type="Q4_K_M", imatrix=matrix)
    rows = [stored(tmp_path / f"{name}.gguf", "blk.0.ffn_up.weight") for name in ("plain", "weighted")]
    assert rows[0].shape == rows[1].shape
    assert (rows[0] != rows[1]).any()


@pytest.mark.parametrize(
    ("options", "error", "part"),
    [
        ({"window": 4}, UsageError, "4 tokens is too small"),
        ({"window": 1024}, ContextOverflow, "1,024"),
        ({"text": []}, UsageError, "`text` is []"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    options: dict[str, Any], error: type[PigError], part: str, tmp_path: Path, text: Path
) -> None:
    _, gguf = converted(tmp_path, "llama")
    arguments: dict[str, Any] = {"text": [text], "window": WINDOW, **options}
    with pytest.raises(error) as caught:
        pigguf.imatrix(gguf, output=tmp_path / "matrix.gguf", **arguments)
    assert part in caught.value.message
    assert caught.value.hint
    assert not (tmp_path / "matrix.gguf").exists()


def test_a_text_that_fills_no_window_and_a_matrix_of_another_model(tmp_path: Path, text: Path) -> None:
    checkpoint, gguf = converted(tmp_path, "llama")
    short = tmp_path / "short.txt"
    short.write_text("Hm.")
    with pytest.raises(TextError, match=r"short\.txt"):
        pigguf.imatrix(gguf, [short], tmp_path / "matrix.gguf", window=WINDOW)
    matrix = pigguf.imatrix(gguf, [text], tmp_path / "matrix.gguf", window=WINDOW).path
    other = make_checkpoint(tmp_path / "other", "llama", num_hidden_layers=1)
    with pytest.raises(UsageError, match="another model"):
        pigguf.convert(other, tmp_path / "x.gguf", type="Q8_0", imatrix=matrix)
    with pytest.raises(UsageError) as caught:
        pigguf.convert(checkpoint, tmp_path / "x.gguf", type="Q8_0", tensor_types={"nothing_at_all": "q8_0"})
    assert "nothing_at_all" in caught.value.message
    assert not (tmp_path / "x.gguf").exists()
