"""Grids laid out in the paper's forms, in each format."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdcache.report import FORMS, Row, Table, as_csv, as_latex, as_markdown, compare


@pytest.fixture
def predictions(tmp_path: Path) -> Any:
    """Write the folder of a run with so many correct answers of two hundred."""

    def write(count: int) -> Path:
        path = tmp_path / str(count)
        path.mkdir(exist_ok=True)
        lines = [f"u{number},a,{'a' if number < count else 'b'}" for number in range(200)]
        (path / "predictions.csv").write_text("\n".join(["uid,label,predicted", *lines]))
        return path

    return write


def row(dataset: str, teacher: str, student: str, method: str, *values: float, **more: Any) -> Row:
    return Row(dataset, teacher, student, method, {"accuracy": dict(enumerate(values))}, **more)


def grid() -> list[Row]:
    """Two data sets, two students, two methods; RD gains 4 points with one student, 2 with one."""
    rows = []
    for dataset in ("busi", "covid"):
        for student, gain in (("resnet18", 0.04), ("mobilenet", 0.02)):
            rows.append(row(dataset, "lvm-med", student, "none", 0.70, 0.72))
            rows.append(row(dataset, "lvm-med", student, "rd", 0.70 + gain, 0.72 + gain))
    return rows


def laid_out(form: str, rows: list[Row], reference: bool = False) -> Table:
    return FORMS[form]("A grid", compare(rows), "none", reference)


def texts(table: Table) -> list[list[str]]:
    return [[entry.text for entry in line] for line in table.lines]


def test_the_main_comparison_has_students_of_data_sets_as_columns() -> None:
    table = laid_out("methods", grid())
    assert [heading.joined for heading in table.headings[2:]] == [
        "busi · resnet18",
        "busi · mobilenet",
        "covid · resnet18",
        "covid · mobilenet",
    ]
    assert texts(table) == [
        ["lvm-med", "none", *["71.0 ± 1.4"] * 4],
        ["lvm-med", "rd", *["75.0 ± 1.4", "73.0 ± 1.4"] * 2],
    ]
    assert all(entry.best for entry in table.lines[1][2:])
    assert not any(entry.best for entry in table.lines[0])


def test_the_papers_numbers_stand_beside_what_they_are_of_and_nothing_else() -> None:
    table = laid_out("methods", grid(), reference=True)
    assert [heading.name for heading in table.headings] == [
        *("teacher", "method", "resnet18", "resnet18, paper", "mobilenet", "mobilenet, paper"),
        *("resnet18", "resnet18, paper", "mobilenet", "mobilenet, paper"),
    ]
    assert texts(table)[1][3::2] == ["88.96", "87.01", "82.27", "84.24"]
    assert any("fully fine-tuned" in note for note in table.notes)
    others = [row("busi", "efficientnet-lite2", "resnet18", "rd", 0.7)]
    table = laid_out("methods", others, reference=True)
    assert len(table.headings) == 3
    assert any("no sound number" in note for note in table.notes)


def test_a_difference_that_other_images_would_show_is_marked(predictions: Any) -> None:
    rows = [
        row("busi", "t", "s", name, count / 200, runs={0: predictions(count)})
        for name, count in (("none", 120), ("kd", 122), ("rd", 160))
    ]
    table = laid_out("methods", rows)
    assert [line[2].text for line in table.lines] == ["60.0", "61.0", "80.0 †"]
    assert any("p < 0.05" in note for note in table.notes)


def test_gains_are_averaged_over_students_seed_by_seed() -> None:
    rows = [
        row("isic", "lvm-med", "a", "none", 0.5, 0.6),
        row("isic", "lvm-med", "a", "rd", 0.6, 0.7),
        row("isic", "lvm-med", "b", "none", 0.5, 0.5),
        row("isic", "lvm-med", "b", "rd", 0.5, 0.6),
    ]
    by_seed = [(0.1 + 0.0) / 2, (0.1 + 0.1) / 2]
    expected = f"+{100 * np.mean(by_seed):.1f} ± {100 * np.std(by_seed, ddof=1):.1f}"
    table = laid_out("gains", rows, reference=True)
    assert texts(table) == [["lvm-med", "rd", expected]], "the paper's mean is of other students"
    assert "Averaged over a, b." in table.notes
    assert any("no sound number" in note for note in table.notes)


def of_the_papers_students(baseline: str = "none") -> list[Row]:
    return [
        row("isic", "lvm-med", student, method, value)
        for student in ("resnet18", "shufflenet", "mobilenet")
        for method, value in ((baseline, 0.5), ("rd", 0.6))
    ]


def test_the_papers_mean_gains_stand_beside_gains_of_its_three_students() -> None:
    table = laid_out("gains", of_the_papers_students(), reference=True)
    assert texts(table) == [["lvm-med", "rd", "+10.0", "+6.02"]]
    fewer = laid_out("gains", of_the_papers_students()[:4], reference=True)
    assert texts(fewer) == [["lvm-med", "rd", "+10.0"]]


def test_the_papers_gains_are_over_plain_students() -> None:
    compared = compare(of_the_papers_students("direct"), baseline="direct")
    assert texts(FORMS["gains"]("t", compared, "direct", True)) == [["lvm-med", "rd", "+10.0"]]


@pytest.mark.parametrize("form", ["plain", "methods", "peft", "gains", "ablation"])
def test_the_papers_accuracies_stand_beside_no_other_metric(form: str) -> None:
    rows = [
        replace(it, values={"macro_f1": it.values["accuracy"]}) for it in of_the_papers_students()
    ]
    table = FORMS[form]("t", compare(rows, "macro_f1"), "none", True)
    assert not any("paper" in heading.name for heading in table.headings)
    assert not any("fully fine-tuned" in note or "averages" in note for note in table.notes)


def test_the_plain_form_has_the_papers_accuracies_too() -> None:
    table = laid_out("plain", grid()[:2], reference=True)
    column = [heading.name for heading in table.headings].index("accuracy, paper")
    assert [line[column] for line in texts(table)] == ["77.92", "88.96"]


def test_gains_are_averaged_over_the_students_that_all_rows_have() -> None:
    rows = [
        row("isic", "t", "a", "none", 0.5),
        row("isic", "t", "a", "rd", 0.6),
        row("isic", "t", "a", "kd", 0.7),
        row("isic", "t", "b", "none", 0.5),
        row("isic", "t", "b", "rd", 0.9),
        row("covid", "t", "a", "none", 0.5),
        row("covid", "t", "a", "rd", 0.5),
        row("covid", "t", "b", "none", 0.5),
        row("covid", "t", "b", "rd", 0.7),
    ]
    table = laid_out("gains", rows)
    assert texts(table) == [["t", "rd", "+10.0", "+10.0"], ["t", "kd", "+20.0", "–"]]
    assert "On isic: averaged over a." in table.notes
    assert "On covid: averaged over a, b." in table.notes
    apart = [
        row("isic", "t", "a", "none", 0.5),
        row("isic", "t", "a", "kd", 0.7),
        row("isic", "t", "b", "none", 0.5),
        row("isic", "t", "b", "rd", 0.9),
    ]
    table = laid_out("gains", apart)
    assert [line[2] for line in texts(table)] == ["–", "–"]
    assert "Rows have no student in common." in table.notes


def test_without_a_plain_student_there_are_no_gains_and_the_table_says_so() -> None:
    table = laid_out("gains", [row("isic", "t", "a", "rd", 0.6), row("isic", "t", "a", "kd", 0.7)])
    assert table.lines == ()
    assert table.notes[0] == "Without a row of none there are no gains."


def test_one_that_lacks_a_seed_is_not_the_best() -> None:
    rows = [
        row("busi", "t", "s", "none", 0.5, 0.6),
        row("busi", "t", "s", "kd", 0.6, 0.7),
        row("busi", "t", "s", "rd", 0.9, diverged={1: "NaN"}),
    ]
    for form in ("methods", "peft"):
        entries = [e for line in laid_out(form, rows).lines for e in line if e.mean is not None]
        assert [entry.text for entry in entries if entry.best] == ["65.0 ± 7.1"]


def test_the_comparison_with_peft_ends_in_averages_over_what_all_have() -> None:
    table = laid_out("peft", [*grid(), row("btc", "lvm-med", "resnet18", "rd", 0.5, 0.5)])
    assert texts(table)[-2:] == [
        ["btc", "resnet18", "–", "50.0 ± 0.0"],
        ["average", "of 4", "71.0 ± 1.4", "74.0 ± 1.4"],
    ]


def test_the_ablation_keeps_the_order_of_the_grid() -> None:
    rows = [
        row("covid", "t", "resnet18", "none", 0.5, 0.6),
        row("covid", "t", "resnet18", "direct", 0.6, 0.7),
        row("covid", "t", "resnet18", "co-training + KD", 0.7, 0.9),
    ]
    table = laid_out("ablation", rows, reference=True)
    assert [line[:2] for line in texts(table)] == [
        ["none", "75.86"],
        ["direct", "80.79"],
        ["co-training + KD", "82.27"],
    ]
    assert "covid, t, resnet18" in table.title


def test_what_diverged_and_what_was_tuned_is_seen() -> None:
    rows = [
        row("busi", "t", "s", "none", 0.5, 0.6),
        row("busi", "t", "s", "kd", 0.6, tuning={"factor": 0.1}, diverged={1: "NaN"}),
        Row("busi", "t", "s", "hint", {}, tuning={"factor": 10.0}, diverged={0: "NaN", 1: "NaN"}),
    ]
    lines = texts(laid_out("plain", rows))
    assert lines[0][4:6] == ["–", "55.0 ± 7.1"]
    assert lines[1][4:6] == ["×0.1", "60.0"]
    assert lines[1][-1] == "1 (seed 1 diverged)"
    assert lines[2][4:6] == ["×10", "diverged"]
    assert any("hint, seeds 0, 1" in note for note in laid_out("methods", rows).notes)


def test_an_unequal_budget_is_said() -> None:
    rows = [
        row("busi", "t", "s", "none", 0.5, training={"epochs": 40, "lr": 0.1}),
        row("busi", "t", "s", "rd", 0.6, training={"epochs": 240, "lr": 0.1}),
    ]
    assert laid_out("plain", rows).notes == (
        "rd is compared with none at epochs 240 instead of 40.",
    )


def test_data_sets_are_told_by_their_sizes() -> None:
    sizes = {"classes": 2, "train": 530, "val": 94, "test": 156}
    rows = [row("busi", "t", "s", "none", 0.5, sizes=sizes, leaked=frozenset({"u1"}))]
    assert texts(laid_out("datasets", rows, reference=True)) == [
        ["busi", "2", "530", "94", "156", "1", "154"]
    ]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_a_table_in_every_format(form: str) -> None:
    table = laid_out(form, grid())
    assert all(len(line) == len(table.headings) for line in table.lines)
    markdown = as_markdown(table).split("\n\n")[1].splitlines()
    assert {line.count("|") for line in markdown} == {len(table.headings) + 1}
    latex = [line for line in as_latex(table).splitlines() if line.endswith(r"\\")]
    assert {line.count("&") for line in latex if "multicolumn" not in line} == {
        len(table.headings) - 1
    }
    lines = list(csv.reader(io.StringIO(as_csv(table))))
    assert len({len(line) for line in lines}) == 1


def test_csv_holds_numbers_that_programs_read() -> None:
    heading, _, rd = csv.reader(io.StringIO(as_csv(laid_out("methods", grid()[:2]))))
    assert heading == ["teacher", "method", "busi · resnet18 (%)", "busi · resnet18 std (%)"]
    assert [float(text) for text in rd[2:]] == pytest.approx([75.0, 100 * 0.02 / np.sqrt(2)], 1e-4)


def test_csv_has_a_column_for_each_number(predictions: Any) -> None:
    rows = [
        row(
            *("busi", "t", "s", name),
            *(count / 200, (count + 2) / 200),
            runs={0: predictions(count), 1: predictions(count + 2)},
            tuning=tuning,
        )
        for name, count, tuning in (("none", 120, None), ("rd", 160, {"factor": 0.1}))
    ]
    lines = list(csv.DictReader(io.StringIO(as_csv(laid_out("plain", rows)))))
    for line in lines:
        for name, text in line.items():
            if name not in ("dataset", "teacher", "student", "method"):
                assert text == "" or np.isfinite(float(text)), name
    none, rd = lines
    assert none["accuracy gain over none (points)"] == ""
    assert float(rd["weights (factor)"]) == 0.1
    assert float(rd["accuracy gain over none (points)"]) == pytest.approx(20)
    assert float(rd["accuracy gain over none low (points)"]) == pytest.approx(20)
    assert float(rd["over images low (points)"]) < 20 < float(rd["over images high (points)"])
    assert 0 < float(rd["p"]) < 0.05
    assert rd["seeds"] == "2"


def test_latex_reads_no_commands_in_names() -> None:
    table = laid_out("methods", [row("a_b", "50%", r"\x", "k&d", 0.5, 0.5)])
    text = as_latex(table)
    assert r"50\% & k\&d & 50.0 $\pm$ 0.0" in text
    assert r"\textbackslash{}x" in text
    assert r"a\_b" in text
    compared = laid_out("methods", [row("a", "t", "s", "p < 0 | q > 1", 0.5)])
    assert r"p \textless{} 0 \textbar{} q \textgreater{} 1" in as_latex(compared)
