"""`pigguf repair`: what is wrong with a GGUF's positions, and the same file with other keys."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pigguf.cli import exit_codes, render
from pigguf.cli.metadata_values import as_data, brief, kind
from pigguf.cli.options import PATH, json_option
from pigguf.cli.signals import tidy_termination
from pigguf.errors import UsageError
from pigguf.operations.lint import Advice, LintFinding, mending
from pigguf.operations.repair import KeyChange, RepairResult, repair
from pigguf.rope import RopeOverrides


@click.command()
@click.argument("path", metavar="FILE", type=PATH)
@click.option("--rope-factor", type=float, metavar="F", help="Scaling factor; 1: positions are not scaled.")
@click.option("--context", type=int, metavar="N", help="Tokens of the window it can be used at.")
@click.option("--original-context", type=int, metavar="N", help="Tokens of the window it was trained at.")
@click.option("--rope-base", type=float, metavar="B", help="Base (theta) of the rotation frequencies.")
@click.option(
    "--set",
    "edits",
    metavar="KEY=VALUE",
    multiple=True,
    help="Set a key, new or not; arrays as JSON. KEY=TYPE:VALUE gives its type: u32, f32, str, i32[], ...",
)
@click.option("--remove", metavar="KEY", multiple=True, help="Take a key away.")
@click.option("-o", "--output", metavar="COPY", type=PATH, help="Write a copy; default: replace FILE itself.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and write nothing.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    path: Path,
    rope_factor: float | None,
    context: int | None,
    original_context: int | None,
    rope_base: float | None,
    edits: tuple[str, ...],
    remove: tuple[str, ...],
    output: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Find what is wrong with the positions of the GGUF file FILE, or mend it.

    FILE alone: the faults, the evidence for each, and the command that would mend it; nothing is written.
    With anything to change: the keys, old and new. The tensors are copied as they are, at the speed of
    the disk, and FILE is replaced in one step, or not harmed. The numbers for positions must fit each
    other, factor x original window = window, and so settle those that are not given.

    \b
    Exit codes, beyond those of every command:
        0  sound, or changed as asked
       15  something is wrong, and nothing was changed

    \b
    Examples:
      pigguf repair model.gguf
      pigguf repair model.gguf --rope-factor 8 --original-context 2048 --dry-run
      pigguf repair model.gguf --set general.name=Piglet --remove general.url -o copy.gguf
    """
    numbers = RopeOverrides(factor=rope_factor, original_context=original_context, context=context)
    with tidy_termination():
        result = repair(
            path,
            output,
            rope=None if numbers == RopeOverrides() else numbers,
            rope_base=rope_base,
            set=_pairs(edits),
            remove=remove,
            dry_run=dry_run,
            progress=render.progress(),
        )
    asked = bool(edits or remove or rope_base is not None or numbers != RopeOverrides())
    if as_json:
        render.json(_as_data(result))
    elif asked or output is not None:
        _show_changes(result, dry_run)
    else:
        _show_findings(result)
    if result.findings and not asked:
        ctx.exit(exit_codes.FOUND.code)


def _pairs(edits: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for edit in edits:
        key, equals, value = edit.partition("=")
        if not equals or key in pairs:
            problem = "is set twice" if equals else "has no value"
            raise UsageError(f"--set {edit[:80]}: {key[:80]} {problem}", "as in --set general.name=Piglet")
        pairs[key] = value
    return pairs


def _show_findings(result: RepairResult) -> None:
    if not result.findings:
        render.facts([("file", result.source), ("positions", "nothing is wrong with them")])
        return
    render.facts([("file", result.source), ("positions", f"{_things(len(result.findings))} wrong")])
    for finding in result.findings:
        rows: list[tuple[str, object]] = [("what", finding.message)]
        rows += [("found", evidence) for evidence in finding.evidence]
        rows += [_advice_row(result.source, advice) for advice in finding.fixes]
        if not finding.fixes:
            rows.append(("mend", "nothing in the file says how: --rope-factor, --context, --set or --remove"))
        render.facts(rows, title=f"\n{finding.problem}")
    options = mending(result.findings)
    if options and len(result.findings) > 1:
        render.facts([("mend", _command(result.source, options))], title="\nwhat is certain, at once")


def _things(count: int) -> str:
    return "one thing is" if count == 1 else f"{count} things are"


def _advice_row(path: Path, advice: Advice) -> tuple[str, str]:
    condition = f"   ({advice.condition})" if advice.condition else ""
    return "mend", _command(path, advice.options) + condition


def _command(path: Path, options: Sequence[str]) -> str:
    return shlex.join(["pigguf", "repair", str(path), *options])


def _show_changes(result: RepairResult, dry_run: bool) -> None:
    for change in result.changes:
        render.facts([("-", _side(change.old)), ("+", _side(change.new))], title=change.key)
    for decision in result.decisions:
        render.note(decision)
    if not result.changes:
        render.note(f"{result.source} says so already: nothing to change")
    for finding in result.findings:
        render.note(f"still wrong: {finding.message}")
    if result.path is not None:
        render.facts([("written", f"{result.path}, verified, in {result.seconds:.1f} s")])
    elif dry_run:
        render.note("a dry run: nothing was written")


def _side(typed: Any) -> str:
    return "nothing" if typed is None else f"{brief(typed)} ({kind(typed)})"


def _as_data(result: RepairResult) -> dict[str, Any]:
    return {
        "source": str(result.source),
        "path": None if result.path is None else str(result.path),
        "findings": [_finding_data(result.source, finding) for finding in result.findings],
        "command": _words(result.source, mending(result.findings)),
        "changes": [_change_data(change) for change in result.changes],
        "decisions": list(result.decisions),
        "seconds": round(result.seconds, 3),
    }


def _finding_data(path: Path, finding: LintFinding) -> dict[str, Any]:
    return {
        "problem": finding.problem,
        "message": finding.message,
        "evidence": [
            {"source": found.source, "key": found.key, "value": found.value} for found in finding.evidence
        ],
        "advice": [
            {"command": _words(path, advice.options), "condition": advice.condition or None}
            for advice in finding.fixes
        ],
    }


def _words(path: Path, options: Sequence[str]) -> list[str] | None:
    return ["pigguf", "repair", str(path), *options] if options else None


def _change_data(change: KeyChange) -> dict[str, Any]:
    return {
        "key": change.key,
        "old": None if change.old is None else as_data(change.old),
        "new": None if change.new is None else as_data(change.new),
    }
