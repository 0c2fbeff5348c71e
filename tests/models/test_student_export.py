"""Students as ONNX files, run by onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.models import create_student, export_onnx


@pytest.mark.parametrize("name", ["unet-vit-tiny", "unet3d"])
def test_an_exported_student_computes_the_same(name: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    student = create_student(name, 3)
    sides = (32,) * student.dimensions
    export_onnx(student, tmp_path / "student.onnx", sides)
    assert student.training, "it is left as it was"
    session = runtime.InferenceSession(
        tmp_path / "student.onnx", providers=["CPUExecutionProvider"]
    )
    images = torch.randn(3, student.channels, *sides, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = student.eval()(images).logits
    (logits,) = session.run(None, {"images": images.numpy()})
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    facts = json.loads(session.get_modelmeta().custom_metadata_map["rdcache_student"])
    assert facts["name"] == name
    assert facts["mean"] == list(student.mean)
    assert [file.name for file in tmp_path.iterdir()] == ["student.onnx"]


def test_sizes_that_a_student_does_not_see_are_refused(tmp_path: Path) -> None:
    student = create_student("unet-shufflenet-x0.5", 2)
    with pytest.raises(UsageError, match="2 sides"):
        export_onnx(student, tmp_path / "student.onnx", (32, 32, 32))
    with pytest.raises(UsageError, match="multiples of 32"):
        export_onnx(student, tmp_path / "student.onnx", (48, 48))
    assert list(tmp_path.iterdir()) == []
