"""The part that all evaluations share: settings, a resumable journal of finished items, and the report.

    with Evaluation("perplexity", model, settings, progress) as evaluation:
        values = evaluation.run_items("as shipped, window 2,048", items, open_session, compute, count_tokens)
    return evaluation.report(results={...}, tables=(...), plots=(...))

An evaluation splits its work into items (a text window, a question, a trial of the passkey test). Each item
is computed once: its value is written to the journal, and an evaluation that was interrupted continues with
the items that are missing. The model is loaded only if an item is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from pigguf.evals.journal import Journal
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.evals.report import EvalReport, Plot, ReportTable, software_versions
from pigguf.progress import SILENT, Progress, Unit, stage

Item = TypeVar("Item")
Sessions = TypeVar("Sessions")


class NestedProgress:
    """Progress of work inside a stage: advances the outer stage, and begins none of its own."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def begin(self, stage: str, total: float, unit: Unit) -> None:
        """Do nothing: stages do not nest."""

    def advance(self, amount: float) -> None:
        """Advance the outer stage."""
        self._progress.advance(amount)

    def end(self) -> None:
        """Do nothing: the outer stage goes on."""


class Evaluation:
    """One run of an evaluation on one model. A context manager, which opens and closes the journal.

    Args:
        name: the evaluation's name.
        model: the model under test, as shipped.
        settings: all besides the engine's configuration that determines the results, JSON-serializable.
            The same model, name, settings and software versions resume the same journal.
        progress: receives a stage for each call of `run_items` that has something to compute.

    Attributes:
        progress: receives the stages; for loading models.
        item_progress: the progress for the computation of an item, which runs inside a stage.

    Raises:
        OutputError: if the cache directory cannot be written.
    """

    def __init__(
        self, name: str, model: ModelUnderTest, settings: Mapping[str, Any], progress: Progress = SILENT
    ) -> None:
        self._name = name
        self._model = model
        self._settings = {**settings, **model.engine_settings()}
        self._versions = software_versions()
        self.progress = progress
        self.item_progress = NestedProgress(progress)
        self._journal = Journal(model.sha256, name, self._settings, self._versions)

    def __enter__(self) -> Evaluation:
        self._journal.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.__exit__(kind, error, trace)

    def run_items(
        self,
        stage_name: str,
        items: Mapping[str, Item],
        open_session: Callable[[Sequence[Item]], AbstractContextManager[Sessions]],
        compute: Callable[[Sessions, Item], Any],
        count_tokens: Callable[[Sequence[Item]], int],
    ) -> list[Any]:
        """Return the value of each item in order: read from the journal, or computed and journaled.

        Args:
            stage_name: the name of the progress stage.
            items: journal key -> item, in the order in which they are computed.
            open_session: opens what the items are computed with. It gets the items that are missing, and is
                not called if there are none.
            compute: computes the value of one item, JSON-serializable.
            count_tokens: counts the tokens to compute for the missing items, as the stage's total.

        Raises:
            OutputError: if the journal cannot be written.
            PigError: whatever `open_session` and `compute` raise.
        """
        missing = {key: item for key, item in items.items() if key not in self._journal}
        if missing:
            to_compute = list(missing.values())
            with (
                open_session(to_compute) as session,
                stage(self.progress, stage_name, count_tokens(to_compute), "tokens"),
            ):
                for key, item in missing.items():
                    self._journal.get_or_compute(key, partial(compute, session, item))
        return [self._journal[key] for key in items]

    def report(
        self, results: Mapping[str, Any], tables: tuple[ReportTable, ...], plots: tuple[Plot, ...] = ()
    ) -> EvalReport:
        """Assemble the report from the results and what this run knows of the model and the settings."""
        return EvalReport(
            evaluation=self._name,
            subject=self._model.as_data(),
            settings=self._settings,
            versions=self._versions,
            results=results,
            tables=tables,
            plots=plots,
        )
