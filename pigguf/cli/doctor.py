"""`pigguf doctor`: show the diagnosis of operations/doctor.py."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from pigguf.cli import render
from pigguf.cli.options import json_option
from pigguf.common.format_bytes import format_bytes
from pigguf.errors import BackendUnavailable
from pigguf.inference.engine.devices import Device
from pigguf.inference.engine_build.build_record import BuildRecord
from pigguf.operations.doctor import Diagnosis, SystemFacts, diagnose


@click.command(epilog="\b\nExample:\n  pigguf doctor\n  pigguf doctor --json | jq .findings")
@json_option
def command(as_json: bool) -> None:
    """Check the engine on this machine, and report what is missing.

    Shows versions, how the engine was built, and the CPU features and devices it uses, and decodes a few
    tokens in a child process. The exit code is 0 if a model can run.
    """
    diagnosis = diagnose()
    if as_json:
        render.json(_data(diagnosis))
    else:
        _show(diagnosis)
    for finding in diagnosis.findings:
        if finding.failure:
            raise BackendUnavailable(finding.message, finding.hint)


def _show(diagnosis: Diagnosis) -> None:
    facts = diagnosis.facts
    render.key_values(_versions(facts), "Versions")
    render.key_values(_engine(facts), "Engine")
    render.key_values(_machine(facts), "Machine")
    advice = [finding for finding in diagnosis.findings if not finding.failure]
    if advice:
        render.key_values(
            [
                row
                for finding in advice
                for row in (("could be better", finding.message), ("  how", finding.hint))
            ],
            "Advice",
        )


def _versions(facts: SystemFacts) -> list[tuple[str, str]]:
    needed = [(package.name, package.installed or "missing") for package in facts.packages]
    return [("pigguf", facts.pigguf), ("Python", f"{facts.python} on {facts.system}"), *needed]


def _engine(facts: SystemFacts) -> list[tuple[str, str]]:
    engine = facts.engine
    rows = [("built", _built(facts.record))]
    if engine.devices:
        rows += [
            ("CPU features in use", " ".join(engine.cpu_features)),
            ("RPC", "yes" if engine.rpc else "no"),
        ]
        rows += [("device", _device(device)) for device in engine.devices]
    rows.append(("runs on", facts.backend or "nothing, see the error"))
    tested = f"{engine.decoded} tokens decoded, in a batch and one by one" if engine.decoded else "failed"
    return [*rows, ("self-test", tested)]


def _built(record: BuildRecord | None) -> str:
    if record is None:
        return "unknown"
    return f"with {record.compiler.name}: {' '.join((*record.cmake, *record.flags))}"


def _device(device: Device) -> str:
    memory = (
        f", {format_bytes(device.memory_free)} of {format_bytes(device.memory_total)} free"
        if device.memory_total
        else ""
    )
    return f"{device.name}: {device.description} ({device.backend}{memory})"


def _machine(facts: SystemFacts) -> list[tuple[str, str]]:
    machine = facts.machine
    gpu = "yes" if machine.nvidia_gpu else "none found"
    return [
        ("AMX", "yes" if machine.has_amx else "no"),
        ("NVIDIA GPU", gpu),
        ("nvcc", machine.nvcc or "none found"),
        ("compiler for a rebuild", facts.rebuilt_with or "none found"),
        ("memory", f"{format_bytes(facts.memory)} free" if facts.memory is not None else "unknown"),
        ("disk", f"{format_bytes(facts.disk)} free in {facts.folder}"),
    ]


def _data(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the diagnosis as JSON-serializable data."""
    facts = asdict(diagnosis.facts)
    facts["folder"] = str(facts["folder"])
    facts["machine"]["cpu"] = sorted(facts["machine"]["cpu"])
    return {
        "healthy": diagnosis.healthy,
        "backend": diagnosis.facts.backend,
        "findings": [asdict(finding) for finding in diagnosis.findings],
        **facts,
    }
