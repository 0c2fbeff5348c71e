"""Costs laid out as a table.

Its texts are in millions, milliseconds and megabytes; the numbers behind them, which CSV has, are
counts, milliseconds and bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rdcache.report.costs import Cost
from rdcache.report.latencies import Latency
from rdcache.report.tables import MISSING, Entry, Heading, Table

MEGA, GIGA = 1e6, 1e9
SIDES = {2: " px", 3: "³ voxels"}
MEANING = (
    "Parameters: without a classifier; then with one linear layer on the pooled features, or the "
    "last convolution of a student that segments.",
    "MACs and FLOPs: of one image or volume; convolutions and matrix products, attention among "
    "them. One MAC is two FLOPs.",
    "Times: a whole batch, median (90th percentile); float32, evaluation mode.",
    "File: students as safetensors; teachers the bytes of their tensors, black boxes of their "
    "files.",
)


def cost_table(costs: Sequence[Cost], classes: int, place: str) -> Table:
    """Lay costs out, one line a network.

    Args:
        classes: of the classifier in the second column of parameters.
        place: where times were taken, in a few words.
    """
    timed = _timed(costs)
    headings = [
        Heading("network"),
        Heading("kind"),
        Heading("input", unit="px"),
        Heading("parameters"),
        Heading(f"with {classes} classes", unit="parameters"),
        Heading("MACs"),
        Heading("FLOPs"),
        *(Heading(f"×{batch}", device, unit="ms", aside="ms") for device, batch in timed),
        Heading("file", unit="bytes"),
    ]
    notes = [f"{cost.name}: {note}." for cost in costs for note in cost.notes]
    return Table(
        title="Costs",
        headings=tuple(headings),
        lines=tuple(_line(cost, timed) for cost in costs),
        notes=(*MEANING, *notes, f"Measured on {place}."),
    )


def _line(cost: Cost, timed: Sequence[tuple[str, int]]) -> tuple[Entry, ...]:
    found = _latencies(cost)
    return (
        Entry(cost.name),
        Entry(cost.kind),
        Entry(f"{cost.input_size}{SIDES[cost.dimensions]}", cost.input_size),
        _scaled(cost.parameters, MEGA, "M"),
        _scaled(cost.with_classifier, MEGA, "M"),
        _scaled(cost.macs, GIGA, "G"),
        _scaled(cost.flops, GIGA, "G"),
        *(_time(found.get(key)) for key in timed),
        Entry(f"{cost.file_bytes / MEGA:.1f} MB", cost.file_bytes),
    )


def _timed(costs: Sequence[Cost]) -> list[tuple[str, int]]:
    """Every device and batch size that occurs, device by device."""
    keys = dict.fromkeys((it.device, it.batch) for cost in costs for it in cost.latencies)
    devices = list(dict.fromkeys(device for device, _ in keys))
    return sorted(keys, key=lambda key: (devices.index(key[0]), key[1]))


def _latencies(cost: Cost) -> Mapping[tuple[str, int], Latency]:
    return {(it.device, it.batch): it for it in cost.latencies}


def _scaled(count: int | None, unit: float, letter: str) -> Entry:
    return MISSING if count is None else Entry(f"{count / unit:.3f} {letter}", count)


def _time(latency: Latency | None) -> Entry:
    if latency is None:
        return MISSING
    text = f"{latency.median:.1f} ({latency.p90:.1f})"
    return Entry(text, latency.median, {"p90": latency.p90})
