"""`pigguf repair`: report the faults in a GGUF's position keys, or change its keys."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from pigguf.cli import exit_codes, render
from pigguf.cli.metadata_values import as_data, brief, kind
from pigguf.cli.options import FILE_PATH, json_option
from pigguf.cli.parameter_flags import parameters_as_flags
from pigguf.cli.progress_bars import progress_bar
from pigguf.cli.signals import cleanup_on_termination
from pigguf.errors import UsageError
from pigguf.gguf_io.metadata import TypedValue, round_to_shortest_f32
from pigguf.operations.lint import LintFinding, SuggestedFix, certain_fixes
from pigguf.operations.repair import KeyChange, RepairResult, repair
from pigguf.rope import RopeOverrides


@click.command()
@click.argument("path", metavar="FILE", type=FILE_PATH)
@click.option("--rope-factor", type=float, metavar="F", help="Scaling factor; 1: positions are not scaled.")
@click.option(
    "--context", "rope_context", type=int, metavar="N", help="Context length it can be used at, in tokens."
)
@click.option(
    "--original-context",
    "rope_original_context",
    type=int,
    metavar="N",
    help="Context length it was trained at, in tokens.",
)
@click.option("--rope-base", "rope_theta", type=float, metavar="B", help="Rope theta (base frequency).")
@click.option(
    "--set",
    "set",
    metavar="KEY=VALUE",
    multiple=True,
    help="Set a key, new or not; arrays as JSON. KEY=TYPE:VALUE gives its type: u32, f32, str, i32[], ...",
)
@click.option("--remove", metavar="KEY", multiple=True, help="Remove a key.")
@click.option(
    "-o", "--output", metavar="COPY", type=FILE_PATH, help="Write a copy; default: replace FILE itself."
)
@click.option("--dry-run", is_flag=True, help="Show what would change, and write nothing.")
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    path: Path,
    rope_factor: float | None,
    rope_context: int | None,
    rope_original_context: int | None,
    rope_theta: float | None,
    set: tuple[str, ...],
    remove: tuple[str, ...],
    output: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Find faults in the position keys of the GGUF file FILE, or change its keys.

    With FILE only: the faults, the evidence for each, and the commands that would fix them; nothing is
    written. With changes: the keys, old and new. The tensors are copied as they are, at the speed of the
    disk, and FILE is replaced in one step or stays as it was. The rope numbers must fit each other,
    factor x original context = context, and those not given are derived.

    \b
    Exit codes, beyond those of every command:
        0  no faults, or changed as asked
       15  faults were found, and nothing was changed

    \b
    Examples:
      pigguf repair model.gguf
      pigguf repair model.gguf --rope-factor 8 --original-context 2048 --dry-run
      pigguf repair model.gguf --set general.name=Piglet --remove general.url -o copy.gguf
    """
    rope = RopeOverrides(factor=rope_factor, original_context=rope_original_context, context=rope_context)
    with cleanup_on_termination():
        result = repair(
            path,
            output,
            rope=None if rope == RopeOverrides() else rope,
            rope_theta=rope_theta,
            set=_parse_edits(set),
            remove=remove,
            dry_run=dry_run,
            progress=progress_bar(),
        )
    has_edits = bool(set or remove or rope_theta is not None or rope != RopeOverrides())
    if as_json:
        render.json(_as_data(result))
    elif has_edits or output is not None:
        _show_changes(result, dry_run)
    else:
        _show_findings(result)
    if result.findings and not has_edits:
        ctx.exit(exit_codes.FOUND.code)


def _parse_edits(edits: Sequence[str]) -> dict[str, str]:
    """Return the values of --set by key."""
    values: dict[str, str] = {}
    for edit in edits:
        key, equals, value = edit.partition("=")
        if not equals or key in values:
            problem = "is set twice" if equals else "has no value"
            raise UsageError(
                f"--set {edit[:80]}: {key[:80]} {problem}", "for example --set general.name=Piglet"
            )
        values[key] = value
    return values


# ---- findings ------------------------------------------------------------------------------------------


def _show_findings(result: RepairResult) -> None:
    if not result.findings:
        render.key_values([("file", result.source), ("positions", "no faults found")])
        return
    count = len(result.findings)
    render.key_values(
        [("file", result.source), ("positions", f"{count} fault{'s' if count > 1 else ''} found")]
    )
    for finding in result.findings:
        rows: list[tuple[str, object]] = [("fault", parameters_as_flags(finding.message))]
        rows += [("evidence", evidence) for evidence in finding.evidence]
        rows += [("fix", _fix_with_condition(result.source, fix)) for fix in finding.fixes]
        if not finding.fixes:
            rows.append(("fix", "not known from the file: use --rope-factor, --context, --set or --remove"))
        render.key_values(rows, title=f"\n{finding.problem}")
    words = _command_words(result.source, certain_fixes(result.findings))
    if words is not None and count > 1:
        render.key_values([("fix", shlex.join(words))], title="\nall faults with a certain fix, at once")


def _fix_with_condition(path: Path, fix: SuggestedFix) -> str:
    condition = f"   ({fix.condition})" if fix.condition else ""
    return shlex.join(_command_words(path, [fix]) or []) + condition


def _command_words(path: Path, fixes: Iterable[SuggestedFix]) -> list[str] | None:
    """Return the command that applies fixes to a file, as the words of an argv, or None without a fix."""
    flags = dict.fromkeys(flag for fix in fixes for flag in _flags(fix))
    words = [word for flag in flags for word in flag]
    return ["pigguf", "repair", str(path), *words] if words else None


def _flags(fix: SuggestedFix) -> Iterator[tuple[str, str]]:
    """Yield a fix as flags of this command with their values."""
    if fix.rope.factor is not None:
        yield "--rope-factor", f"{fix.rope.factor:.10g}"
    if fix.rope.original_context is not None:
        yield "--original-context", str(fix.rope.original_context)
    if fix.rope.context is not None:
        yield "--context", str(fix.rope.context)
    if fix.rope_theta is not None:
        yield "--rope-base", f"{fix.rope_theta:.10g}"
    for key, typed in fix.set.items():
        yield "--set", f"{key}={_value_text(typed)}"


def _value_text(typed: TypedValue) -> str:
    """Return a value as --set takes it; strings need no type, because the keys of fixes are known ones."""
    if typed.type == "str":
        return str(typed.value)
    if typed.type == "f32":
        return f"f32:{round_to_shortest_f32(typed.value):.10g}"
    return f"{typed.type}:{str(typed.value).lower()}"


# ---- changes -------------------------------------------------------------------------------------------


def _show_changes(result: RepairResult, dry_run: bool) -> None:
    for change in result.changes:
        render.key_values(
            [("-", _typed_value(change.old)), ("+", _typed_value(change.new))], title=change.key
        )
    for decision in result.decisions:
        render.note(parameters_as_flags(decision))
    if not result.changes:
        render.note(f"nothing to change: {result.source} has these values already")
    for finding in result.findings:
        render.note(f"still wrong: {parameters_as_flags(finding.message)}")
    if result.path is not None:
        render.key_values([("written", f"{result.path}, verified, in {result.seconds:.1f} s")])
    elif dry_run:
        render.note("dry run: nothing was written")


def _typed_value(typed: TypedValue | None) -> str:
    return "nothing" if typed is None else f"{brief(typed)} ({kind(typed)})"


# ---- JSON ----------------------------------------------------------------------------------------------


def _as_data(result: RepairResult) -> dict[str, Any]:
    return {
        "source": str(result.source),
        "path": None if result.path is None else str(result.path),
        "findings": [_finding_data(result.source, finding) for finding in result.findings],
        "command": _command_words(result.source, certain_fixes(result.findings)),
        "changes": [_change_data(change) for change in result.changes],
        "decisions": [parameters_as_flags(decision) for decision in result.decisions],
        "seconds": round(result.seconds, 3),
    }


def _finding_data(path: Path, finding: LintFinding) -> dict[str, Any]:
    return {
        "problem": finding.problem,
        "message": parameters_as_flags(finding.message),
        "evidence": [
            {"source": evidence.source, "key": evidence.key, "value": evidence.value}
            for evidence in finding.evidence
        ],
        "advice": [
            {"command": _command_words(path, [fix]), "condition": fix.condition or None}
            for fix in finding.fixes
        ],
    }


def _change_data(change: KeyChange) -> dict[str, Any]:
    return {
        "key": change.key,
        "old": None if change.old is None else as_data(change.old),
        "new": None if change.new is None else as_data(change.new),
    }
