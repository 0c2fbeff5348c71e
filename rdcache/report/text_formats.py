"""A laid-out table as Markdown, CSV or LaTeX."""

from __future__ import annotations

import csv
import io
from itertools import groupby

from rdcache.report.tables import MISSING, Entry, Table

LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "→": r"$\rightarrow$",
    "−": r"$-$",
    "–": "--",
    "·": r"$\cdot$",
    "τ": r"$\tau$",
    "†": r"$\dagger$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def as_markdown(table: Table) -> str:
    """The title, a pipe table with the best in bold, and the notes as a list."""

    def cell(entry: Entry) -> str:
        text = entry.text.replace("|", "\\|")
        return f"**{text}**" if entry.best else text

    headings = [heading.joined.replace("|", "\\|") for heading in table.headings]
    rows = [headings, ["---"] * len(headings), *([*map(cell, line)] for line in table.lines)]
    body = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    notes = "".join(f"- {note}\n" for note in table.notes)
    return f"**{table.title}**\n\n{body}" + (f"\n{notes}" if notes else "")


def as_csv(table: Table) -> str:
    """Numbers alone, in the units of their headings: a column whose texts say more than one number,
    as mean ± std, is followed by one for each of the others.

    Titles and notes are left out, so that any reader of CSV takes it.
    """
    headings: list[str] = []
    columns: list[list[str]] = []
    for number, heading in enumerate(table.headings):
        entries = [line[number] for line in table.lines]
        if not heading.unit and all(entry.mean is None for entry in entries):
            headings.append(heading.of_number())
            columns.append(["" if entry == MISSING else entry.text for entry in entries])
            continue
        headings.append(heading.of_number())
        columns.append([_number(entry.mean) for entry in entries])
        for which in dict.fromkeys(name for entry in entries for name in entry.further):
            headings.append(heading.of_number(which))
            columns.append([_number(entry.further.get(which)) for entry in entries])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([headings, *zip(*columns, strict=True)])
    return text.getvalue()


def as_latex(table: Table) -> str:
    """A booktabs table: groups over their columns, a rule between blocks, the best in bold."""

    def cell(entry: Entry) -> str:
        text = escaped(entry.text)
        return f"\\textbf{{{text}}}" if entry.best else text

    named = [
        f"\\multicolumn{{{len(list(those))}}}{{c}}{{{escaped(group)}}}"
        for group, those in groupby(heading.group for heading in table.headings)
    ]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{escaped(table.title)}}}",
        f"\\begin{{tabular}}{{{'l' * table.block}{'c' * (len(table.headings) - table.block)}}}",
        "\\toprule",
    ]
    if any(heading.group for heading in table.headings):
        lines.append(" & ".join(named) + r" \\")
    lines += [" & ".join(escaped(it.shown) for it in table.headings) + r" \\", "\\midrule"]
    before = None
    for line in table.lines:
        block = [entry.text for entry in line[: table.block - 1]]
        if before is not None and block != before:
            lines.append("\\midrule")
        before = block
        lines.append(" & ".join(map(cell, line)) + r" \\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"\\par\\footnotesize {escaped(note)}" for note in table.notes]
    return "\n".join([*lines, "\\end{table}"]) + "\n"


def escaped(text: str) -> str:
    """A text in which LaTeX finds no commands."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"
