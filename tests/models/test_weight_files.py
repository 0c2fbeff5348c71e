"""Weight files are read, never run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from rdcache.errors import UnsafeFileError, WeightsMismatchError, WeightsNotFoundError
from rdcache.models import list_teachers, load_teacher
from rdcache.models.weight_files import read_tensors, tensors_digest


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.target,))


def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "it-ran", tmp_path / "weights.pth"
    torch.save({"state_dict": Malicious(trace)}, path)
    with pytest.raises(UnsafeFileError) as caught:
        load_teacher("pmc-clip", path)
    assert not trace.exists()
    assert "state_dict" in caught.value.facts["instead"]
    assert "pickled" in caught.value.summary


def test_a_bare_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    trace, path = tmp_path / "it-ran", tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises((UnsafeFileError, WeightsMismatchError)):
        read_tensors(path)
    assert not trace.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UnsafeFileError):
        read_tensors(tmp_path / "module.pt")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 broken"])
def test_a_damaged_file_is_one_sentence(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises((WeightsMismatchError, UnsafeFileError)):
        read_tensors(path)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: list_teachers(), id="list"),
        pytest.param(lambda: load_teacher("rad-resnet50"), id="published"),
        pytest.param(lambda: load_teacher("rad-resnet50", "forbidden/weights.pth"), id="given"),
        pytest.param(lambda: load_teacher("onnx:forbidden/model.onnx"), id="black box"),
    ],
)
def test_a_folder_that_may_not_be_read_is_one_sentence(
    call: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)  # chmod would not stop root
    with pytest.raises(WeightsNotFoundError, match="cannot be read") as caught:
        call()
    assert caught.value.facts["why"] == "Permission denied"


def test_a_truncated_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(WeightsMismatchError):
        read_tensors(path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(2)], torch.zeros(2)])
def test_a_file_without_named_tensors_is_one_sentence(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsMismatchError, match="no named tensors"):
        read_tensors(tmp_path / "weights.pth")


def test_the_digest_depends_on_names_shapes_and_numbers_only() -> None:
    a, b = torch.arange(6.0), torch.ones(2, 2)
    digest = tensors_digest({"a": a, "b": b})
    assert tensors_digest({"b": b.T.contiguous().T, "a": a.clone()}) == digest
    assert tensors_digest({"a": a.reshape(2, 3), "b": b}) != digest
    assert tensors_digest({"a": a + 1, "b": b}) != digest
    assert tensors_digest({"x": a, "b": b}) != digest
    assert tensors_digest({"a": a.double(), "b": b}) != digest
