"""The state of a training run on disk, from which an interrupted run resumes: weights, optimizer and log.

A run works in the directory `OUTPUT.training/` until its result is at OUTPUT:

    run.json     the settings and the data, so that a run is not resumed with others by mistake
    state.pt     the state after the last saved step; replaced atomically
    log.jsonl    a line of metrics a step; truncated to the saved step when a run resumes
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pigguf.common.atomic_write import atomic_write
from pigguf.errors import OutputError, TrainingError, UsageError
from pigguf.finetuning.settings import FinetuneSettings


@dataclass(frozen=True)
class TrainingState:
    """The state of a run after a step.

    Attributes:
        step: the number of the step.
        parameters: the trained parameters by name.
        optimizer: the state dict of the optimizer.
    """

    step: int
    parameters: dict[str, torch.Tensor]
    optimizer: dict[str, Any]


class TrainingDirectory:
    """The directory of a run that is not finished.

    Args:
        output: the path of the result.

    Attributes:
        path: the directory, OUTPUT.training.
        log_path: the log in it.
    """

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(output.name + ".training")
        self._run_path, self._state_path, self.log_path = (
            self.path / name for name in ("run.json", "state.pt", "log.jsonl")
        )

    def open(self, settings: FinetuneSettings, data: Mapping[str, Any]) -> TrainingState | None:
        """Create the directory, or load the state that an earlier run with the same settings and data saved.

        Args:
            settings: the settings of this run.
            data: identifies the checkpoint, the text and the adapter.

        Returns:
            The saved state, or None if there is none.

        Raises:
            UsageError: if the directory has the state of another run.
            TrainingError: if the state cannot be read.
            OutputError: if the directory cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be created: {error.strerror}") from error
        if self._run_path.exists():
            self._check_same_run(settings, data)
        run = json.dumps({"settings": settings.as_data(), "data": dict(data)}, indent=2)
        _write_atomically(self._run_path, run.encode())
        return self._load_state() if self._state_path.exists() else None

    def _check_same_run(self, settings: FinetuneSettings, data: Mapping[str, Any]) -> None:
        earlier = json.loads(self._run_path.read_text(encoding="utf-8"))
        difference = settings.difference(earlier["settings"])
        for name, value in data.items():
            if difference is None and earlier["data"].get(name) != value:
                difference = f"{name} has changed"
        if difference:
            raise UsageError(
                f"{self.path} holds an unfinished run with other settings: {difference}",
                "give the settings of that run to resume it, or remove the directory to start over",
            )

    def _load_state(self) -> TrainingState:
        try:
            return TrainingState(**torch.load(self._state_path, map_location="cpu", weights_only=True))
        except Exception as error:  # torch raises whatever its unpickler meets
            raise TrainingError(
                f"{self._state_path} cannot be read: {error}", "remove the directory to start over"
            ) from error

    def save_state(self, state: TrainingState) -> None:
        """Replace the saved state atomically.

        Raises:
            OutputError: if it cannot be written; the state before it is kept.
        """
        buffer = io.BytesIO()
        torch.save({"step": state.step, "parameters": state.parameters, "optimizer": state.optimizer}, buffer)
        _write_atomically(self._state_path, buffer.getbuffer())

    def truncate_log(self, n_lines: int) -> list[dict[str, Any]]:
        """Truncate the log to its first lines, and return them."""
        lines = list(self.read_log())[:n_lines] if self.log_path.exists() else []
        _write_atomically(self.log_path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        return lines

    def append_log(self, line: Mapping[str, Any]) -> None:
        """Append the metrics of a step to the log.

        Raises:
            OutputError: if the log cannot be written.
        """
        try:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(f"{self.log_path} cannot be written: {error.strerror}") from error

    def read_log(self) -> Iterable[dict[str, Any]]:
        """Yield the lines of the log up to the first that is not JSON, which a killed process left."""
        for line in self.log_path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def _write_atomically(path: Path, content: bytes | memoryview) -> None:
    with atomic_write(path, len(content)) as file:
        file.write(content)
