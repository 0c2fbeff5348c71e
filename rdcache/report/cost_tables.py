"""The cost table as text, Markdown, CSV or LaTeX.

CSV has plain numbers for machines; the others have millions, milliseconds and megabytes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from rdcache.report.costs import Cost
from rdcache.report.latencies import Latency

MISSING = "–"
MEGA, GIGA = 1e6, 1e9
LATEX = {"_": r"\_", "%": r"\%", "#": r"\#", "&": r"\&", MISSING: "--", "×": r"$\times$"}


def columns(costs: Sequence[Cost], classes: int) -> list[str]:
    """Titles of the table for people."""
    return [
        "network",
        "kind",
        "input",
        "parameters",
        f"with {classes} classes",
        "MACs",
        "FLOPs",
        *(f"{device} ×{batch}, ms" for device, batch in _timed(costs)),
        "file",
    ]


def cells(cost: Cost, costs: Sequence[Cost]) -> list[str]:
    """One line of it; latencies are the median and, in brackets, the 90th percentile."""
    found = _latencies(cost)
    return [
        cost.name,
        cost.kind,
        f"{cost.input_size} px",
        _scaled(cost.parameters, MEGA, "M"),
        _scaled(cost.with_classifier, MEGA, "M"),
        _scaled(cost.macs, GIGA, "G"),
        _scaled(cost.flops, GIGA, "G"),
        *(_time(found.get(key)) for key in _timed(costs)),
        f"{cost.file_bytes / MEGA:.1f} MB",
    ]


def markdown(costs: Sequence[Cost], classes: int) -> str:
    """A Markdown table."""
    titles = columns(costs, classes)
    rows = [titles, ["---"] * len(titles), *(cells(cost, costs) for cost in costs)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def latex(costs: Sequence[Cost], classes: int) -> str:
    """A LaTeX `tabular` that needs no package."""
    titles = columns(costs, classes)
    rows = [titles, *(cells(cost, costs) for cost in costs)]
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in rows]
    layout = "ll" + "r" * (len(titles) - 2)
    body = "\n".join([lines[0], r"\hline", *lines[1:]])
    return f"\\begin{{tabular}}{{{layout}}}\n{body}\n\\end{{tabular}}\n"


def as_csv(costs: Sequence[Cost]) -> str:
    """Comma-separated values: counts, bytes and milliseconds; empty where there is no number."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    timed = _timed(costs)
    writer.writerow(
        [
            *("network", "kind", "input_px", "parameters", "parameters_with_classifier"),
            *("macs", "flops"),
            *(
                f"{device}_batch{batch}_{name}_ms"
                for device, batch in timed
                for name in ("median", "p90")
            ),
            *("file_bytes", "notes"),
        ]
    )
    for cost in costs:
        found = _latencies(cost)
        times = [found.get(key) for key in timed]
        writer.writerow(
            [
                *(cost.name, cost.kind, cost.input_size, cost.parameters, cost.with_classifier),
                *(cost.macs, cost.flops),
                *(
                    None if it is None else round(value, 4)
                    for it in times
                    for value in ((it.median, it.p90) if it is not None else (0.0, 0.0))
                ),
                *(cost.file_bytes, "; ".join(cost.notes)),
            ]
        )
    return text.getvalue()


def notes(costs: Sequence[Cost]) -> list[str]:
    """What the numbers mean, and then what is said of single networks."""
    general = [
        "Parameters: without a classifier; then with one linear layer on the pooled features.",
        "MACs and FLOPs: of one image; convolutions and matrix products, attention among them. One "
        "MAC is two FLOPs.",
        "Times: a whole batch, median (90th percentile); float32, evaluation mode.",
        "File: students as safetensors; teachers the bytes of their tensors, black boxes of their "
        "files.",
    ]
    return [*general, *(f"{cost.name}: {note}." for cost in costs for note in cost.notes)]


def _timed(costs: Sequence[Cost]) -> list[tuple[str, int]]:
    """Every device and batch size that occurs."""
    return list(dict.fromkeys((it.device, it.batch) for cost in costs for it in cost.latencies))


def _latencies(cost: Cost) -> Mapping[tuple[str, int], Latency]:
    return {(it.device, it.batch): it for it in cost.latencies}


def _scaled(count: int | None, unit: float, letter: str) -> str:
    return MISSING if count is None else f"{count / unit:.3f} {letter}"


def _time(latency: Latency | None) -> str:
    return MISSING if latency is None else f"{latency.median:.1f} ({latency.p90:.1f})"


def _escaped(text: str) -> str:
    return "".join(LATEX.get(letter, letter) for letter in text)
