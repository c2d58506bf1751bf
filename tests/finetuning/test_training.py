"""Fine-tuning for real on toy models: what it reaches, what survives a kill, what stops it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_checkpoints import edit_config, make_checkpoint
from transformers import AutoModelForCausalLM

import pigguf.finetuning.training as training_module
from pigguf.errors import OutputError, RopeConflict, TextError, TrainingError, UnsupportedModel, UsageError
from pigguf.finetuning.finetune import finetune
from pigguf.finetuning.settings import FinetuneSettings
from pigguf.finetuning.training import learning_rate_at
from pigguf.finetuning.training_log import StepMetrics

FACTOR = 4
WINDOW = 256  # 4 x the toy's 64
SETTINGS = FinetuneSettings(
    FACTOR, method="full", dtype="f32", steps=30, batch=4, learning_rate=3e-3, held_out=4, every=10
)
LORA = replace(SETTINGS, method="lora", rank=4, alpha=8, learning_rate=1e-2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("source") / "toy")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, novel: str) -> Path:
    path = tmp_path_factory.mktemp("text") / "novel.txt"
    path.write_text(novel[:60_000], encoding="utf-8")
    return path


def held_out_loss(log: tuple[dict[str, Any], ...], step: int) -> float:
    (line,) = (line for line in log if line["step"] == step)
    return float(line["held_out"]["text"])


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft, reading an adapter
@pytest.mark.parametrize(
    "settings",
    [SETTINGS, replace(SETTINGS, sequence_length=64, position_skipping=True), LORA],
    ids=["full", "skipping", "lora"],
)
def test_thirty_steps_bring_the_loss_at_four_times_the_window_below_the_untuned_one(
    settings: FinetuneSettings, checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    result = finetune(checkpoint, [text], tmp_path / "out", settings)
    assert held_out_loss(result.steps, 30) < held_out_loss(result.steps, 0) - 0.2
    untuned, tuned = loss_at(checkpoint, text), loss_at(result.path, text, adapter_of=checkpoint)
    assert tuned < untuned - 0.2


def loss_at(path: Path, text: Path, adapter_of: Path | None = None) -> float:
    """Return the loss of transformers over one window of 4 x 64 tokens at positions divided by 4."""
    from transformers import AutoConfig, AutoTokenizer

    is_adapter = (path / "adapter_config.json").exists()
    base = adapter_of if adapter_of and is_adapter else path
    config = AutoConfig.from_pretrained(path if (path / "training.json").exists() else base)
    config.rope_parameters = {**config.rope_parameters, "rope_type": "linear", "factor": FACTOR}
    model = AutoModelForCausalLM.from_pretrained(base, config=config, dtype=torch.float32)
    if is_adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, path)
    tokens = AutoTokenizer.from_pretrained(adapter_of or path)(text.read_text()[-3000:])["input_ids"]
    ids = torch.tensor([tokens[:WINDOW]])
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss)


def test_the_result_carries_the_rope_facts(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    for settings in (SETTINGS, LORA):
        out = tmp_path / settings.method
        result = finetune(checkpoint, [text], out, replace(settings, steps=1))
        config = json.loads((out / "config.json").read_text())
        assert config["rope_parameters"]["rope_type"] == "linear"
        assert config["rope_parameters"]["factor"] == FACTOR
        assert config["max_position_embeddings"] == WINDOW
        assert config["original_max_position_embeddings"] == 64
        assert result.rope.context_length == WINDOW
        assert not (tmp_path / f"{settings.method}.training").exists()


def test_lora_trains_norms_and_embeddings_where_asked(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    finetune(checkpoint, [text], tmp_path / "plain", replace(LORA, steps=1))
    finetune(checkpoint, [text], tmp_path / "more", replace(LORA, steps=3, train=("norms", "embeddings")))
    plain = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    more = load_file(tmp_path / "more" / "adapter_model.safetensors")
    base = load_file(checkpoint / "model.safetensors")
    assert all("lora_" in name for name in plain)
    trained = {name.removeprefix("base_model.model.") for name in more if "lora_" not in name}
    assert trained == {name for name in base if "norm" in name or "embed_tokens" in name}
    for name in trained:
        assert not torch.equal(more[f"base_model.model.{name}"].float(), base[name])


def test_gradient_checkpointing_changes_nothing_but_memory(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    for method in (SETTINGS, LORA):
        settings = replace(method, steps=3)
        plain = finetune(checkpoint, [text], tmp_path / f"a{method.method}", settings)
        saving = finetune(
            checkpoint, [text], tmp_path / f"b{method.method}", replace(settings, gradient_checkpointing=True)
        )
        assert held_out_loss(saving.steps, 3) == pytest.approx(held_out_loss(plain.steps, 3), rel=1e-5)


def test_a_killed_run_resumes_to_the_same_result(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    settings = replace(LORA, every=2, steps=8)
    whole = finetune(checkpoint, [text], tmp_path / "whole", settings)
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [
            *(
                sys.executable,
                "-m",
                "pigguf",
                "finetune",
                checkpoint,
                "--factor",
                "4",
                "--text",
                text,
                "-o",
                out,
            ),
            *("--dtype", "f32", "--steps", "8", "--batch", "4", "--learning-rate", "1e-2", "--rank", "4"),
            *("--held-out", "4", "--every", "2"),
        ],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    log = tmp_path / "killed.training" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") >= 4) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert not out.exists()
    resumed = finetune(checkpoint, [text], out, settings)
    assert [line["step"] for line in resumed.steps] == list(range(9))
    assert resumed.steps[-1]["loss"] == pytest.approx(whole.steps[-1]["loss"], rel=1e-5)
    assert resumed.steps[-1]["tokens"] == whole.steps[-1]["tokens"]


def test_the_state_of_another_run_is_not_resumed(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def stop(step: StepMetrics) -> None:
        if step.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(checkpoint, [text], out, replace(LORA, every=2), on_step=stop)
    with pytest.raises(UsageError, match="rank was 4 and is 8"):
        finetune(checkpoint, [text], out, replace(LORA, every=2, rank=8))
    text2 = tmp_path / "other.txt"
    text2.write_text(text.read_text()[1000:])
    with pytest.raises(UsageError, match="text has changed"):
        finetune(checkpoint, [text2], out, replace(LORA, every=2))
    more = finetune(checkpoint, [text], out, replace(LORA, every=3, steps=5, learning_rate=1e-3))
    assert [line["step"] for line in more.steps] == list(range(6))


def test_a_nan_loss_stops_training_and_keeps_the_last_good_state(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, every=2, steps=40)
    out = tmp_path / "out"

    def break_it(step: StepMetrics) -> None:
        if step.step == 3:  # what a diverged update leaves behind
            next(iter(models[0].trained_parameters.values())).data.fill_(float("nan"))

    models: list[Any] = []
    load = training_module.TrainedModel.__init__

    def remember(self: Any, *arguments: Any) -> None:
        load(self, *arguments)
        models.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_module.TrainedModel, "__init__", remember)
        with pytest.raises(TrainingError, match=r"step 4 is nan.*step 2 is kept") as failed:
            finetune(checkpoint, [text], out, settings, on_step=break_it)
    assert "`learning_rate`" in str(failed.value.hint)
    state = torch.load(tmp_path / "out.training" / "state.pt", weights_only=True)
    assert state["step"] == 2
    assert all(value.isfinite().all() for value in state["parameters"].values())
    resumed = finetune(checkpoint, [text], out, replace(settings, steps=4, learning_rate=1e-4))
    assert [line["step"] for line in resumed.steps] == [0, 1, 2, 3, 4]


def test_a_learning_rate_that_is_far_too_high_diverges_by_itself(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="diverged"):
        finetune(checkpoint, [text], tmp_path / "out", replace(SETTINGS, learning_rate=1e38))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_keeps_what_was_saved(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    """A real file system with room for the state but not for the next one beside it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    program = (
        "import sys; from dataclasses import replace; from pathlib import Path\n"
        "from pigguf.errors import OutputError; from pigguf.finetuning.finetune import finetune\n"
        "from pigguf.finetuning.settings import FinetuneSettings\n"
        "settings = FinetuneSettings(4, method='full', dtype='f32', steps=6, batch=2, learning_rate=1e-3,"
        " held_out=2, every=2)\n"
        "def fill(step):\n"
        "    if step.step == 3:\n"
        "        (Path(sys.argv[3]) / 'ballast').write_bytes(bytes(2_700_000))\n"
        "try:\n"
        "    finetune(sys.argv[1], [sys.argv[2]], sys.argv[3] + '/out', settings, on_step=fill)\n"
        "except OutputError as error:\n"
        "    print(error.message); print(error.hint)\n"
        "    import torch\n"
        "    print(torch.load(sys.argv[3] + '/out.training/state.pt', weights_only=True)['step'])\n"
        "(Path(sys.argv[3]) / 'ballast').unlink()\n"
        "print(finetune(sys.argv[1], [sys.argv[2]], sys.argv[3] + '/out', settings).steps[-1]['step'])\n"
    )
    steps = f'mount -t tmpfs -o size=4500k none {disk} && exec "$0" -c "$1" "$2" "$3" {disk}'
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", steps, sys.executable, program, str(checkpoint), str(text)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    message, hint, step, last = ran.stdout.splitlines()
    assert "space" in message + hint
    assert step == "2"
    assert last == "6"


def test_it_starts_from_an_adapter_with_its_weights(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    first = finetune(checkpoint, [text], tmp_path / "first", replace(LORA, train=("norms",)))
    settings = replace(LORA, train=("norms",), steps=1, learning_rate=1e-9)
    second = finetune(checkpoint, [text], tmp_path / "second", settings, adapter=first.path)
    assert held_out_loss(second.steps, 0) == pytest.approx(held_out_loss(first.steps, 30), rel=1e-3)  # bf16
    with pytest.raises(UsageError, match=r"trained with other settings: .*lora_A"):
        finetune(checkpoint, [text], tmp_path / "a", replace(settings, rank=2), adapter=first.path)
    with pytest.raises(UsageError, match="lora_alpha is 8 there, and 16 here"):
        finetune(checkpoint, [text], tmp_path / "b", replace(settings, alpha=16), adapter=first.path)
    with pytest.raises(UsageError, match="norm"):
        finetune(checkpoint, [text], tmp_path / "c", replace(settings, train=()), adapter=first.path)
    with pytest.raises(RopeConflict, match="factor"):
        finetune(checkpoint, [text], tmp_path / "d", replace(settings, factor=2), adapter=first.path)
    with pytest.raises(UsageError, match="is missing"):
        finetune(checkpoint, [text], tmp_path / "e", settings, adapter=tmp_path)
    with pytest.raises(UsageError, match="LoRA only"):
        finetune(checkpoint, [text], tmp_path / "f", SETTINGS, adapter=first.path)


def test_warm_up_is_the_paper_s_and_then_comes_the_schedule() -> None:
    cosine = FinetuneSettings(4, steps=120, learning_rate=1.0)
    assert learning_rate_at(cosine, 0) == pytest.approx(0.1)
    assert learning_rate_at(cosine, 10) == pytest.approx(0.55)
    assert learning_rate_at(cosine, 20) == 1.0
    assert learning_rate_at(cosine, 70) == pytest.approx(0.55)  # half way down to a tenth
    assert learning_rate_at(cosine, 120) == pytest.approx(0.1)
    assert learning_rate_at(replace(cosine, schedule="constant"), 119) == 1.0
    assert FinetuneSettings(4, method="full").peak_learning_rate == 2e-5


def test_settings_that_do_not_fit(checkpoint: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="does not extend"):
        FinetuneSettings(1.0)
    with pytest.raises(UsageError, match="never reach the positions") as refused:
        finetune(checkpoint, [text], out, replace(SETTINGS, sequence_length=64))
    assert "`position_skipping`" in str(refused.value.hint)
    with pytest.raises(UsageError, match="longer than the extended window of 256"):
        finetune(checkpoint, [text], out, replace(SETTINGS, sequence_length=512))
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        finetune(checkpoint, [text], out, replace(SETTINGS, device="gpu"))
    with pytest.raises(TextError, match="held out"):
        finetune(checkpoint, [text], tmp_path / "b", replace(SETTINGS, held_out=10_000))
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(TextError, match="a sequence takes 256"):
        finetune(checkpoint, [tmp_path / "short.txt"], tmp_path / "c", SETTINGS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(OutputError, match="not an empty directory"):
        finetune(checkpoint, [text], tmp_path / "full", SETTINGS)


def test_positions_with_other_scalings_are_errors(text: Path, tmp_path: Path) -> None:
    further = make_checkpoint(tmp_path / "further")
    edit_config(
        further,
        rope_parameters={"rope_type": "linear", "factor": 8.0, "rope_theta": 10000.0},
        max_position_embeddings=512,
        original_max_position_embeddings=64,
    )
    with pytest.raises(RopeConflict, match="already extended by 8"):
        finetune(further, [text], tmp_path / "out", SETTINGS)
    yarn = make_checkpoint(tmp_path / "yarn")
    edit_config(
        yarn,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 64,
        },
        max_position_embeddings=256,
    )
    with pytest.raises((UnsupportedModel, RopeConflict)):
        finetune(yarn, [text], tmp_path / "out", SETTINGS)


def test_a_checkpoint_that_is_cut_short_is_refused_at_once(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    broken = make_checkpoint(tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match=r"model\.norm\.weight"):
        finetune(broken, [text], tmp_path / "out", SETTINGS)
