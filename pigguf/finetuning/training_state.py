"""What survives a kill: the trained weights and the optimizer after some step, and the log up to it.

A run works in `OUTPUT.training/` until its result stands at OUTPUT:
    run.json     settings and data, so that nobody goes on with another run by mistake
    state.pt     after the last saved step; replaced whole or not at all
    log.jsonl    a line a step, cut back to the saved step when a run goes on
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
    """A run after `step` steps: the trained parameters by name, and the optimizer's own state."""

    step: int
    parameters: dict[str, torch.Tensor]
    optimizer: dict[str, Any]


class TrainingDirectory:
    """The folder of a run that is not finished."""

    def __init__(self, output: Path) -> None:
        self.path = output.with_name(output.name + ".training")
        self._run, self._state, self.log_path = (
            self.path / name for name in ("run.json", "state.pt", "log.jsonl")
        )

    def open(self, settings: FinetuneSettings, data: Mapping[str, Any]) -> TrainingState | None:
        """Make the folder, or find what an earlier run of the same settings and data left in it.

        Raises:
            UsageError: another run's state lies here.
            TrainingError: the state cannot be read.
            OutputError: the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be made: {error.strerror}") from error
        if self._run.exists():
            self._refuse_another_run(settings, data)
        _write(self._run, json.dumps({"settings": settings.as_data(), "data": dict(data)}, indent=2).encode())
        return self._load() if self._state.exists() else None

    def _refuse_another_run(self, settings: FinetuneSettings, data: Mapping[str, Any]) -> None:
        earlier = json.loads(self._run.read_text(encoding="utf-8"))
        difference = settings.difference(earlier["settings"])
        for name, value in data.items():
            if difference is None and earlier["data"].get(name) != value:
                difference = f"{name} is not what it was"
        if difference:
            raise UsageError(
                f"{self.path} holds a run that was begun otherwise: {difference}",
                "give what it was begun with to go on, or remove the folder to begin anew",
            )

    def _load(self) -> TrainingState:
        try:
            return TrainingState(**torch.load(self._state, map_location="cpu", weights_only=True))
        except Exception as error:  # torch raises whatever the unpickler met
            raise TrainingError(
                f"{self._state} cannot be read: {error}", "remove the folder to begin anew"
            ) from error

    def save_state(self, state: TrainingState) -> None:
        """Replace the saved state, whole or not at all.

        Raises:
            OutputError: no room, or no right; the state before it is still there.
        """
        buffer = io.BytesIO()
        torch.save({"step": state.step, "parameters": state.parameters, "optimizer": state.optimizer}, buffer)
        _write(self._state, buffer.getbuffer())

    def truncate_log(self, steps: int) -> list[dict[str, Any]]:
        """Cut the log back to its first `steps` steps, and return them."""
        lines = list(self.read_log())[:steps] if self.log_path.exists() else []
        _write(self.log_path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        return lines

    def append_log(self, line: Mapping[str, Any]) -> None:
        """Add a step to the log."""
        try:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(f"{self.log_path} cannot be written: {error.strerror}") from error

    def read_log(self) -> Iterable[dict[str, Any]]:
        """The steps so far; a last line that a kill has torn is left out."""
        for line in self.log_path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def _write(path: Path, content: bytes | memoryview) -> None:
    with atomic_write(path, len(content)) as file:
        file.write(content)
