"""Costs of networks, against plain arithmetic and published counts."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from small_inputs import Pooling
from torch import nn

from rdcache.cli import cli
from rdcache.errors import UsageError
from rdcache.models import create_student, list_students, load_teacher
from rdcache.report.cost_tables import cost_table
from rdcache.report.costs import Cost, CostConfig, cost_of_student, cost_of_teacher, measure_costs
from rdcache.report.latencies import FEWEST, Latency, time_passes
from rdcache.report.operations import count_operations
from rdcache.report.text_formats import as_csv, as_latex, as_markdown

CPU = [torch.device("cpu")]
UNTIMED = CostConfig(batch=(), classes=1000)
# MACs at 224 px as published with the networks, in millions; the counter leaves out pooling.
PUBLISHED_MACS = {"resnet18": 1820, "mobilenet": 300, "shufflenet": 146, "shufflenet-x0.5": 41}
PUBLISHED_WITH_CLASSIFIER = {
    "resnet18": 11_689_512,
    "mobilenet": 3_504_872,
    "shufflenet": 2_278_604,
    "shufflenet-x0.5": 1_366_792,
}


@pytest.mark.parametrize("name", PUBLISHED_MACS)
def test_students_cost_what_was_published(name: str) -> None:
    cost = cost_of_student(name, UNTIMED, CPU)
    card = next(card for card in list_students() if card.name == name)
    assert (cost.input_size, cost.parameters) == (224, card.parameters)
    assert cost.with_classifier == PUBLISHED_WITH_CLASSIFIER[name]
    assert cost.macs is not None
    assert cost.macs / 1e6 == pytest.approx(PUBLISHED_MACS[name], rel=0.015)
    assert cost.flops == 2 * cost.macs
    state = create_student(name, 1000).state_dict().values()
    numbers = sum(value.numel() * value.element_size() for value in state)
    assert numbers < cost.file_bytes < numbers + 64_000  # and the header


def test_students_that_segment_and_of_volumes_are_counted_alike() -> None:
    small = CostConfig(batch=(), image_size=16)
    cost = cost_of_student("unet3d", small, CPU)
    card = next(card for card in list_students() if card.name == "unet3d")
    assert (cost.parameters, cost.with_classifier) == (card.parameters, card.parameters + 2 * 17)
    assert "2 classes" in cost.notes[0]
    assert cost.macs is not None
    assert cost.macs > 16**3 * 27 * (16 + 16 * 16), "of the first two convolutions alone"
    asked = cost_of_student("unet3d", CostConfig(batch=(), image_size=16, classes=4), CPU)
    assert asked.with_classifier == card.parameters + 4 * 17
    (line,) = cost_table([cost], 2, "here").lines
    assert line[2].text == "16³ voxels"


class Tiny(nn.Module):
    """A strided convolution, attention of two heads over its positions, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.classifier = nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.convolution(images).flatten(2).transpose(1, 2)
        query, key, value = (tokens.unflatten(-1, (2, 4)).transpose(1, 2) for _ in range(3))
        tokens = tokens + nn.functional.scaled_dot_product_attention(query, key, value).transpose(
            1, 2
        ).flatten(2)
        tokens = self.layer(self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return self.classifier(tokens.mean(dim=1))


def test_operations_are_those_of_plain_arithmetic() -> None:
    network, positions = Tiny().eval(), 6 * 6
    products = 2 * positions * positions * 8  # QKᵀ and the weighted sum of V, over both heads
    projections = 4 * positions * 8 * 8  # of query, key, value and output
    expected = (
        positions * 8 * 3 * 3 * 3
        + products
        + (products + projections)
        + (products + projections + 2 * positions * 8 * 16)
        + 8 * 5
    )
    images = torch.randn(1, 3, 12, 12)
    assert count_operations(lambda: network(images)).macs == expected
    assert count_operations(lambda: network(images.repeat(2, 1, 1, 1))).macs == 2 * expected


def test_what_cannot_be_counted_is_named_and_not_left_out() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens = torch.randn(1, 4, 8)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch deprecates what users still have
        fused = torch.jit.trace(layer, tokens, check_trace=False)
    found = count_operations(lambda: fused(tokens))
    assert found.macs is None
    assert found.uncounted == ("aten::_transformer_encoder_layer_fwd",)


def test_a_teacher_without_weights_costs_the_same_and_says_so() -> None:
    cost = cost_of_teacher("rad-densenet", UNTIMED, CPU)
    assert (cost.parameters, cost.with_classifier) == (6_953_856, 7_978_856)  # as published
    assert cost.macs is not None
    assert cost.macs / 1e9 == pytest.approx(2.83, rel=0.005)
    statistics = 2 * 41_824  # of the batch norms, which are kept beside the parameters
    assert cost.file_bytes == 4 * (cost.parameters + statistics)
    assert "random" in cost.notes[0]


def test_a_teachers_own_classifier_is_not_among_its_parameters() -> None:
    teacher = load_teacher("timm:test_vit", "random")
    every = sum(parameter.numel() for parameter in teacher.network.parameters())
    cost = cost_of_teacher("timm:test_vit", UNTIMED, CPU)
    assert cost.parameters == every - (64 + 1) * 1000
    assert cost.with_classifier == every


def test_a_black_box_without_parameters_says_why(script: Callable[[nn.Module], str]) -> None:
    cost = cost_of_teacher(script(Pooling(1.0)), UNTIMED, CPU)
    assert (cost.parameters, cost.with_classifier, cost.macs) == (None, None, 0)
    assert cost.file_bytes > 0
    assert "constants" in cost.notes[0]


def test_latencies_are_of_at_least_the_fewest_passes() -> None:
    calls: list[torch.Tensor] = []
    latency = time_passes(calls.append, torch.zeros(3, 3, 4, 4), seconds=0.0)
    assert (latency.device, latency.batch, latency.passes) == ("cpu", 3, FEWEST)
    assert len(calls) > FEWEST, "some warm up"
    assert 0 < latency.median <= latency.p90


@pytest.fixture
def costs() -> list[Cost]:
    timed = (Latency("cpu", 1, 1.25, 2.5, 9), Latency("cpu", 32, 40.0, 44.0, 5))
    return [
        Cost("onnx:my_box.onnx", "teacher", 224, None, None, None, 12_000_000, timed[:1], ("why",)),
        Cost("shufflenet", "student", 64, 1_253_604, 1_256_679, 11_900_000, 5_100_000, timed),
    ]


def test_tables_have_every_number_and_dashes_where_there_is_none(costs: list[Cost]) -> None:
    table = cost_table(costs, 3, "a machine")
    box, student = ([entry.text for entry in line] for line in table.lines)
    assert student[2:] == [
        *("64 px", "1.254 M", "1.257 M", "0.012 G", "0.024 G", "1.2 (2.5)", "40.0 (44.0)", "5.1 MB")
    ]
    assert box[3:] == ["–", "–", "–", "–", "1.2 (2.5)", "–", "12.0 MB"]
    assert "onnx:my_box.onnx: why." in table.notes
    text = as_markdown(table)
    assert "| with 3 classes | MACs | FLOPs | cpu · ×1 (ms) | cpu · ×32 (ms) | file |" in text
    assert r"onnx:my\_box.onnx & teacher" in as_latex(table)


def test_csv_has_plain_numbers(costs: list[Cost]) -> None:
    box, student = csv.DictReader(io.StringIO(as_csv(cost_table(costs, 7, "here"))))
    assert (box["parameters"], box["FLOPs"], box["cpu · ×32 (ms)"]) == ("", "", "")
    assert (student["parameters"], student["FLOPs"]) == ("1253604", "23800000")
    assert float(student["cpu · ×32 p90 (ms)"]) == 44.0


def as_json(*arguments: str) -> Any:
    result = CliRunner().invoke(cli, ["cost", *arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_command_tells_costs_and_the_machine() -> None:
    few = ("--image-size", "32", "--batch", "1,2", "--seconds", "0", "--threads", "1")
    facts = as_json("--student", "shufflenet-x0.5", "--device", "cpu", "--classes", "3", *few)
    (network,) = facts["networks"]
    assert network["parameters"] == 341_792
    assert network["flops"] == 2 * network["macs"] > 0
    assert [it["batch"] for it in network["latencies"]] == [1, 2]
    assert all(0 < it["median"] <= it["p90"] for it in network["latencies"])
    assert facts["machine"]["threads"] == 1
    assert facts["machine"]["cpu"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "nothing to measure"),
        ({"student": ("resnet18",), "batch": (0,)}, "at least one image"),
        ({"student": ("timm:test_vit",), "image_size": 50}, "does not run"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure_costs(CostConfig(device="cpu", **changes))


def test_parameters_and_bytes_of_an_onnx_file_are_counted(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(torch.zeros(4, 3, 1, 1).numpy(), "weight")
    shape = onnx.numpy_helper.from_array(torch.tensor([1, 2]).numpy(), "an integer")
    value = onnx.helper.make_tensor_value_info
    float32 = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["images", "weight"], ["map"])],
        "box",
        [value("images", float32, ["batch", 3, 8, 8])],
        [value("map", float32, ["batch", 4, 8, 8])],
        [weight, shape],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 8
    path = tmp_path / "box.onnx"
    onnx.save(model, str(path))
    cost = cost_of_teacher(f"onnx:{path}", UNTIMED, CPU)
    assert (cost.parameters, cost.with_classifier) == (12, 12 + 5 * 1000)
    assert cost.macs is None
    assert cost.file_bytes == path.stat().st_size
