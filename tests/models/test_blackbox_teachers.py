"""TorchScript and ONNX files: what they return are the taps, and nothing else is believed."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from rdcache.errors import (
    RdcacheError,
    TeacherOutputError,
    UnsafeFileError,
    UsageError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from rdcache.models import load_teacher

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))


class Pyramid(nn.Module):
    """Two maps and an embedding, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size = 32
        self.first = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        first = self.first(images).relu()
        second = self.second(first).relu()
        return {"early": first, "late": second, "embedding": second.mean((2, 3))}


class Pair(Pyramid):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = self.first(images).relu()
        return first, first.mean((2, 3))


def scripted(module: nn.Module, path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module.eval()).save(path)
    return f"torchscript:{path}"


def exported(path: Path, shape: tuple[int | str | None, ...] = ("batch", 3, 32, 32)) -> str:
    """An ONNX graph made by hand: a strided convolution, and its global average as `pooled`."""
    weight = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(6)).numpy()
    nodes = [
        helper.make_node("Conv", ["images", "weight"], ["features"], strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["features"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["pooled"]),
    ]
    graph = helper.make_graph(
        nodes,
        "blackbox",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("pooled", TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return f"onnx:{path}"


def convolved(images: torch.Tensor) -> torch.Tensor:
    weight = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(6))
    return nn.functional.conv2d(images, weight, stride=4)


def test_named_outputs_of_torchscript_are_taps_by_these_names(tmp_path: Path) -> None:
    module = Pyramid()
    teacher = load_teacher(scripted(module, tmp_path / "model.pt"))
    assert {name: tap.shape for name, tap in teacher.taps.items()} == {
        "early": (4, 8, 8),
        "late": (6, 4, 4),
        "embedding": (6,),
    }
    assert teacher.default_tap == "late"
    outputs = teacher.forward_taps(IMAGES, ["embedding", "early"])
    with torch.no_grad():
        expected = module(IMAGES)
    assert list(outputs) == ["embedding", "early"]
    for name, value in outputs.items():
        torch.testing.assert_close(value, expected[name])


class OddNames(Pyramid):
    """Names that exporters make, two of them equal but for characters no file name has."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        first = self.first(images).relu()
        mean = first.mean((2, 3))
        return {"/early/Relu_0": first, "early/Relu:0": mean, "early-Relu_0": mean, "logits": first}


def test_names_that_no_file_could_have_are_made_plain_and_unique(tmp_path: Path) -> None:
    module = OddNames()
    teacher = load_teacher(scripted(module, tmp_path / "model.pt"))
    taps = ["early-Relu_0-2", "early-Relu-0", "early-Relu_0", "logits"]
    assert list(teacher.taps) == taps
    outputs = teacher.forward_taps(IMAGES, taps)
    with torch.no_grad():
        torch.testing.assert_close(outputs["early-Relu_0-2"], module(IMAGES)["/early/Relu_0"])


def test_a_map_called_logits_is_a_map(tmp_path: Path) -> None:
    teacher = load_teacher(scripted(OddNames(), tmp_path / "model.pt"))
    assert teacher.taps["logits"].kind == "map2d"


def test_unnamed_outputs_of_torchscript_are_numbered(tmp_path: Path) -> None:
    teacher = load_teacher(scripted(Pair(), tmp_path / "model.pt"))
    assert list(teacher.taps) == ["out0", "out1"]
    assert [tap.kind for tap in teacher.taps.values()] == ["map2d", "vector"]


def test_the_path_of_a_black_box_stays_on_this_machine(tmp_path: Path) -> None:
    teacher = load_teacher(scripted(Pair(), tmp_path / "model.pt"))
    facts = f"{teacher.name} {teacher.architecture} {teacher.weights.to_dict()}"
    assert str(tmp_path) not in facts
    assert teacher.name == "torchscript:model.pt"


def test_another_model_under_the_same_name_is_another_teacher(tmp_path: Path) -> None:
    first = load_teacher(scripted(Pair(), tmp_path / "model.pt")).weights.sha256
    assert load_teacher(scripted(Pair(), tmp_path / "model.pt")).weights.sha256 != first


def test_a_model_that_does_not_run_is_one_sentence(tmp_path: Path) -> None:
    module = Pair()
    module.first = nn.Conv2d(1, 4, 3)  # a grey image, which it will not get
    with pytest.raises(TeacherOutputError, match="does not run"):
        load_teacher(scripted(module, tmp_path / "model.pt"))


def test_a_state_dict_is_not_taken_for_torchscript(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(WeightsMismatchError, match="not a TorchScript file"):
        load_teacher(f"torchscript:{tmp_path / 'weights.pth'}")


def test_torchscript_given_as_weights_says_how_to_name_it(tmp_path: Path) -> None:
    scripted(Pair(), tmp_path / "model.pt")
    with pytest.raises(RdcacheError, match="torchscript:FILE"):
        load_teacher("pmc-clip", tmp_path / "model.pt")


def test_outputs_of_onnx_are_taps_by_their_names(tmp_path: Path) -> None:
    teacher = load_teacher(exported(tmp_path / "model.onnx"))
    assert {name: tap.shape for name, tap in teacher.taps.items()} == {
        "features": (5, 8, 8),
        "pooled": (5,),
    }
    assert teacher.preprocessing.size == 32
    outputs = teacher.forward_taps(IMAGES, ["pooled", "features"])
    assert list(outputs) == ["pooled", "features"]
    torch.testing.assert_close(outputs["features"], convolved(IMAGES), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        outputs["pooled"], convolved(IMAGES).mean((2, 3)), rtol=1e-4, atol=1e-4
    )


def test_onnx_outputs_with_slashes_and_colons_are_taps_too(tmp_path: Path) -> None:
    name = exported(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    for old, new in (("features", "/layer4/Conv_output_0"), ("pooled", "layer4/out:0")):
        for names in (*(n.input for n in model.graph.node), *(n.output for n in model.graph.node)):
            names[:] = [new if each == old else each for each in names]
        next(output for output in model.graph.output if output.name == old).name = new
    onnx.save(model, tmp_path / "model.onnx")
    teacher = load_teacher(name)
    assert list(teacher.taps) == ["layer4-Conv_output_0", "layer4-out-0"]
    outputs = teacher.forward_taps(IMAGES, ["layer4-out-0", "layer4-Conv_output_0"])
    torch.testing.assert_close(
        outputs["layer4-Conv_output_0"], convolved(IMAGES), rtol=1e-4, atol=1e-4
    )


def test_a_network_exported_by_torch_gives_equal_taps(tmp_path: Path) -> None:
    module = Pair().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (IMAGES[:2],),
            tmp_path / "model.onnx",
            input_names=["images"],
            output_names=["map", "pooled"],
            dynamic_axes={"images": {0: "batch"}},
            dynamo=False,
        )
    outputs = load_teacher(f"onnx:{tmp_path / 'model.onnx'}").forward_taps(IMAGES, ["map"])
    with torch.no_grad():
        torch.testing.assert_close(outputs["map"], module(IMAGES)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_size_is_respected(batch: int, tmp_path: Path) -> None:
    teacher = load_teacher(exported(tmp_path / "model.onnx", (batch, 3, 32, 32)))
    outputs = teacher.forward_taps(IMAGES, ["features"])
    torch.testing.assert_close(outputs["features"], convolved(IMAGES), rtol=1e-4, atol=1e-4)


def test_a_free_input_size_is_224(tmp_path: Path) -> None:
    teacher = load_teacher(exported(tmp_path / "model.onnx", ("n", 3, "h", "w")))
    assert teacher.preprocessing.size == 224
    assert teacher.taps["features"].shape == (5, 56, 56)


@pytest.mark.parametrize("shape", [("n", 1, 32, 32), ("n", 3, 32, 64), ("n", 3, 32)])
def test_an_input_that_is_no_square_rgb_image_is_refused(
    shape: tuple[int | str | None, ...], tmp_path: Path
) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["images"], ["out"])],
        "blackbox",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="square RGB"):
        load_teacher(f"onnx:{tmp_path / 'model.onnx'}")


def outside(path: Path, location: str) -> str:
    """An ONNX file whose weight lies in another file."""
    exported(path)
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    data = numpy_helper.to_array(weight).astype(np.float32).tobytes()
    (path.parent / location).write_bytes(data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", str(len(data)))):
        weight.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return f"onnx:{path}"


def test_external_data_are_part_of_the_digest(tmp_path: Path) -> None:
    name = outside(tmp_path / "model.onnx", "model.data")
    before = load_teacher(name).weights.sha256
    data = tmp_path / "model.data"
    data.write_bytes(bytes(len(data.read_bytes())))
    assert load_teacher(name).weights.sha256 != before
    data.unlink()
    with pytest.raises(WeightsNotFoundError, match=r"model\.data"):
        load_teacher(name)


@pytest.mark.parametrize("data", ["a file", "a link"])
def test_a_model_in_a_cache_of_links_finds_its_external_data(data: str, tmp_path: Path) -> None:
    """As the Hugging Face hub keeps files: snapshot/model.onnx → ../blobs/…"""
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    name = outside(snapshot / "model.onnx", "model.data")
    plain = load_teacher(name)
    for file, blob in (("model.onnx", "aaa"), ("model.data", "bbb")):
        if file == "model.onnx" or data == "a link":
            (snapshot / file).rename(blobs / blob)
            (snapshot / file).symlink_to(f"../blobs/{blob}")
    linked = load_teacher(name)
    assert linked.weights.sha256 == plain.weights.sha256
    expected = plain.forward_taps(IMAGES, ["pooled"])["pooled"]
    torch.testing.assert_close(linked.forward_taps(IMAGES, ["pooled"])["pooled"], expected)


def test_external_data_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises(UnsafeFileError, match="outside its folder"):
        load_teacher(outside(tmp_path / "inner" / "model.onnx", "../model.data"))


@pytest.mark.parametrize("family", ["onnx", "torchscript"])
def test_missing_and_damaged_files_are_one_sentence(family: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError):
        load_teacher(f"{family}:{tmp_path / 'nowhere'}")
    (tmp_path / "damaged").write_bytes(b"not a model")
    with pytest.raises(WeightsMismatchError):
        load_teacher(f"{family}:{tmp_path / 'damaged'}")


@pytest.mark.parametrize("family", ["onnx", "torchscript"])
def test_a_black_box_takes_no_other_weights(family: str) -> None:
    with pytest.raises(UsageError, match="in its file"):
        load_teacher(f"{family}:model", "random")
