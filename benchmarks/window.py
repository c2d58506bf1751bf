#!/usr/bin/env python3
"""Claim: with the shipped adapter the model uses a window of 32768 tokens, in BF16 and in Q4_K_M.

usage: benchmarks/window.py BASE TEXT [--adapter DIR] [--spans N] [--trials N] [--depths N]
       [--work DIR]

Converts the checkpoint BASE alone and with the adapter, and runs pigguf's own evaluations on each file,
printing every command: perplexity by window over the first N spans of 32768 tokens of TEXT (whole windows, so
that every window scores the same text), the passkey test with the paper's wording and with wordings that were
not trained on, and zero-shot questions. The peer is the base model, whose window is 8192.

Spans and trials determine the run time: on two cores a pass over 32768 tokens takes about six minutes; a file
takes one pass a span for the largest window, half as much for all the others, and 2.5 passes for each trial
and wording (1 with --depths 1). Reports are stored in the work folder, one for each trial: run the same
command again to resume, or to add trials.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from peers import machine

from pigguf.checkpoint.adapter import ADAPTER_WEIGHT_FILES
from pigguf.evals.multiple_choice import ACCURACY_MEASURES, compare_paired
from pigguf.evals.passkey_report import k_max

ROOT = Path(__file__).resolve().parent.parent
ADAPTER = ROOT / "models" / "SmolLM2-135M-Instruct-PI-32k"
QUESTIONS = [
    ROOT / "tests" / "data" / "evals" / f"{name}.jsonl"
    for name in ("boolq", "choices", "piqa", "race", "winogrande")
]
WINDOW, ORIGINAL = 32768, 8192
WINDOWS = (2048, 4096, 8192, 16384, 32768)
WORDINGS = ("paper", "locker")
SEED = 7  # of the first trial's keys; each further trial has the next

# Table 1 of arXiv 2306.15595: LLaMA 7B on PG-19, by window
PAPER = {
    "paper: LLaMA 7B": (7.20, ">1000", ">1000", ">1000", ">1000"),
    "paper: LLaMA 7B, PI to 32768": (7.23, 7.04, 6.91, 6.80, 6.77),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the shipped model's window.")
    parser.add_argument("base", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--adapter", type=Path, default=ADAPTER)
    parser.add_argument("--spans", type=int, default=3)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--depths", type=int, default=1)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "window")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    print(machine())
    files = {
        f"{name}, {kind}": converted(options, name, kind)
        for kind in ("BF16", "Q4_K_M")
        for name in ("base", "adapter")
    }
    perplexities(files, options)
    passkeys(files, options)
    choices(files, options)


def converted(options: argparse.Namespace, name: str, kind: str) -> Path:
    target: Path = options.work / f"{name}-{kind}.gguf"
    extended = name == "adapter"
    if is_older(
        target, options.adapter / ADAPTER_WEIGHT_FILES[0] if extended else options.base / "config.json"
    ):
        adapter = ("--adapter", options.adapter) if extended else ()
        pigguf("convert", options.base, *adapter, "--type", kind, "-o", target, "--json")
    return target


def perplexities(files: dict[str, Path], options: argparse.Namespace) -> None:
    head("file", *WINDOWS)
    for name, figures in PAPER.items():
        row(name, *figures)
    for name, file in files.items():
        windows = [window for window in WINDOWS if window <= (ORIGINAL if "base" in name else WINDOW)]
        result = evaluated(
            *("perplexity", file, "--text", options.text, "--method", "whole"),
            *("--windows", ",".join(map(str, windows)), "--max-tokens", options.spans * WINDOW),
        )
        figures = {one["window"]: one["perplexity"] for one in result["perplexity"]}
        row(name, *(f"{figures[window]:.2f}" if window in figures else "" for window in WINDOWS))


def passkeys(files: dict[str, Path], options: argparse.Namespace) -> None:
    head("file", "words", "k_max", "right", "smallest rate", "tokens computed", "of separate prefills")
    for name, file in files.items():
        for wording in WORDINGS:
            if "base" in name and wording != WORDINGS[0]:
                continue
            found = [
                evaluated(
                    *("passkey", file, "--wording", wording, "--seed", SEED + trial),
                    *("--trials", 1, "--depths", options.depths),
                )["readings"]["as shipped"]
                for trial in range(options.trials)
            ]
            rates = rates_of(found)
            right, asked, computed, separate = (
                sum(one[field] for one in found)
                for field in ("right", "trials", "tokens_computed", "tokens_of_separate_prefills")
            )
            reached = k_max({distance: rate for (start, distance), rate in rates.items() if start == 0})
            smallest = f"{min(rates.values()):.0%}"
            row(name, wording, reached, f"{right} of {asked}", smallest, computed, separate)


def rates_of(found: list[Any]) -> dict[tuple[int, int], float]:
    """Return the share of correct answers over all trials, by (position of the key, its distance)."""
    places = [(cell["start"], cell["distance"]) for cell in found[0]["cells"]]
    rates = zip(*([cell["rate"] for cell in one["cells"]] for one in found), strict=True)
    return dict(zip(places, map(fmean, rates), strict=True))


def choices(files: dict[str, Path], options: argparse.Namespace) -> None:
    head("file", "questions", "right", "by length", "right where the base was wrong", "the reverse", "p")
    answers: dict[str, list[dict[str, Any]]] = {}
    for name, file in files.items():
        answers[name] = evaluated("choice", file, *QUESTIONS)["readings"]["as shipped"]["questions"]
        base = name.replace("adapter", "base")
        pair = compare_paired(base, answers[base], name, answers[name], "accuracy")
        right, normalised = (
            sum(answer[field] == answer["answer"] for answer in answers[name])
            for field in ACCURACY_MEASURES.values()
        )
        row(name, len(answers[name]), right, normalised, pair.second_only, pair.first_only, f"{pair.p:.2f}")


def evaluated(*words: object) -> Any:
    """Return the results of an evaluation, from an earlier run of the same command if there is one."""
    names = [Path(word).stem if isinstance(word, Path) else str(word).strip("-") for word in words]
    file = next(word for word in words if isinstance(word, Path))
    kept = file.parent / f"{'-'.join(names)}.json"
    if is_older(kept, file):
        report = pigguf("eval", *words, "--json")
        kept.write_text(report, encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))["results"]


def is_older(made: Path, source: Path) -> bool:
    """Return whether a file is missing, or older than its source."""
    return not made.exists() or made.stat().st_mtime < source.stat().st_mtime


def pigguf(*words: object) -> str:
    command = [str(word) for word in words]
    print(f"$ pigguf {shlex.join(command)}", file=sys.stderr, flush=True)
    ran = subprocess.run(
        [sys.executable, "-m", "pigguf", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return ran.stdout


def head(*cells: object) -> None:
    print()
    row(*cells)
    row(*["---"] * len(cells))


def row(*cells: object) -> None:
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


if __name__ == "__main__":
    main()
