"""Folders of finished runs, written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

CLASSES = ("benign", "malignant")


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """Write a finished run of so many correct answers, and return its folder."""

    def write(
        method: str,
        seed: int,
        correct: Sequence[bool],
        dataset: str = "busi",
        teacher: str = "t",
        student: str = "s",
        leaked: Sequence[int] = (),
        digest: str = "",
        method_options: dict[str, Any] | None = None,
        adapted: dict[str, str] | None = None,
        store: str = "f",
        fit: str = "",
        val: dict[str, float] | None = None,
        below: str = "runs",
        **options: Any,
    ) -> Path:
        folder = tmp_path / below / "-".join((dataset, teacher, student, method, digest))
        folder /= f"seed{seed}"
        folder.mkdir(parents=True)
        config = {"student": student, "method": method, "epochs": 3, "out": "x", **options}
        config["method_options"] = method_options or {}
        (folder / "config.yaml").write_text(
            yaml.safe_dump({"config": config, "store": {"fingerprint": store * 64}, "seed": seed})
        )
        lines = ["uid,label,predicted,p_benign,p_malignant"]
        for number, right in enumerate(correct):
            lines.append(f"u{number},benign,{CLASSES[not right]},0.5,0.5")
        (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
        clean = [right for number, right in enumerate(correct) if number not in leaked]
        test = {"n": len(correct), "accuracy": sum(correct) / len(correct)}
        if leaked:
            test["accuracy_without_leaks"] = sum(clean) / len(clean)
        result = {
            "schema": 1,
            "seed": seed,
            "student": student,
            "method": method,
            "dataset": {"name": dataset, "classes": CLASSES},
            "teacher": {"name": teacher, **({"adapted": adapted} if adapted else {})},
            "training": {"samples": 20},
            "val": {"n": 5, **(val or {})},
            "test": test,
            "leaked_test_uids": [f"u{number}" for number in leaked],
        }
        if fit:
            result["views"] = {"name": "random", "count": 8, "fit": fit}
            result["dataset"] = {**result["dataset"], "digest": "0f" * 32}  # type: ignore[dict-item]
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return write
