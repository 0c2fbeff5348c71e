"""Published files of newer teachers: every tensor of a network has its counterpart, and the parts
that libraries do not build equal their formulas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import volume_layouts as published
from published_layouts import Layout, tensors_of
from torch import nn

from rdcache.errors import UsageError, WeightsMismatchError, WeightsNotFoundError
from rdcache.models import load_teacher
from rdcache.models.catalogue import ENTRIES
from rdcache.models.explained_teachers import EXPLAINED
from rdcache.models.monai_networks import SwinTaps
from rdcache.models.sam import Adapter
from rdcache.models.sam_med3d import Attention, Block, ImageEncoder
from rdcache.models.suprem import UNetTaps
from rdcache.models.taps import measure_shapes
from rdcache.models.vit_teachers import rename_dinov2
from rdcache.models.volume_networks import Oriented
from rdcache.models.weight_files import weight_tensors

LAYOUTS: dict[str, Callable[[], Layout]] = {
    "medsam": published.medsam,
    "sam-med2d": published.sam_med2d,
    "biomedclip": published.biomedclip,
    "rad-dino": published.rad_dino,
    "retfound": published.retfound,
    "ct-fm": published.ct_fm,
    "suprem-unet": published.suprem_unet,
    "suprem-swinunetr": published.suprem_swinunetr,
    "suprem-segresnet": published.suprem_segresnet,
    "merlin": published.merlin,
    "sam-med3d": published.sam_med3d,
}
ON_THE_CPU = {"suprem-swinunetr"}  # its builder asks for numbers


def outline(name: str) -> nn.Module:
    """The network of an entry, of tensors that have shapes only where it can be built so."""
    with torch.device("cpu" if name in ON_THE_CPU else "meta"):
        return ENTRIES[name].build()


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_tensor_of_the_network_is_in_the_published_file(name: str) -> None:
    file = {key: torch.empty(shape, device="meta") for key, shape in LAYOUTS[name]().items()}
    assert not ENTRIES[name].foreign(file)
    renamed = ENTRIES[name].rename(file)
    own = weight_tensors(outline(name).backbone)  # type: ignore[arg-type]
    lacking = {key for key in own if key not in renamed or renamed[key].shape != own[key].shape}
    assert not lacking


@pytest.mark.parametrize("name", [*LAYOUTS, "uni2", "virchow2", "dinov3"])
def test_declared_taps_are_those_of_the_network(name: str) -> None:
    entry = ENTRIES[name]
    channels, *sides = entry.preprocessing.input_shape
    size = sides[0] if len(sides) == 2 else sides
    assert measure_shapes(outline(name), size, channels) == dict(entry.shapes)


@pytest.mark.parametrize(
    ("name", "millions"),
    [("uni2", 681.4), ("virchow2", 631.2), ("ct-fm", 77.8), ("merlin", 117.4), ("dinov3", 85.6)],
)
def test_networks_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    count = sum(parameter.numel() for parameter in outline(name).parameters())
    assert round(count / 1e6, 1) == millions


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    torch.save({"net": {"module.backbone.something": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(WeightsMismatchError, match="suprem-unet"):
        load_teacher("suprem-unet", tmp_path / "other.pth")


def test_suprem_unet_is_read_from_its_checkpoint(tmp_path: Path) -> None:
    tensors = tensors_of(published.suprem_unet())
    torch.save({"net": tensors, "epoch": 2100}, tmp_path / "unet.pth")
    teacher = load_teacher("suprem-unet", tmp_path / "unet.pth")
    assert teacher.weights.matched == "32 of 32"
    assert (teacher.dimensions, teacher.default_tap) == (3, "s2")
    assert "NC-ND" in teacher.weights.licence


def test_sam_and_its_descendants_are_not_taken_for_each_other(tmp_path: Path) -> None:
    plain = {"image_encoder.blocks.0.norm1.weight": torch.zeros(768)}
    adapted = {"image_encoder.blocks.0.Adapter.norm.weight": torch.zeros(768)}
    torch.save(plain, tmp_path / "plain.pth")
    torch.save(adapted, tmp_path / "adapted.pth")
    with pytest.raises(WeightsMismatchError, match="without adapters"):
        load_teacher("sam-med2d", tmp_path / "plain.pth")
    with pytest.raises(WeightsMismatchError, match="as SAM-Med2D"):
        load_teacher("medsam", tmp_path / "adapted.pth")


def test_gated_weights_say_where_to_ask(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match="ask for access"):
        load_teacher("uni2", data_dir=tmp_path)


@pytest.mark.parametrize("name", EXPLAINED)
def test_what_cannot_be_built_is_explained(name: str) -> None:
    with pytest.raises(UsageError, match="torchscript:FILE"):
        load_teacher(name)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_query_key_and_value_become_one_tensor_in_this_order(prefix: str) -> None:
    parts = {
        f"{prefix}encoder.layer.3.attention.attention.{each}.bias": torch.full((2,), float(number))
        for number, each in enumerate(("query", "key", "value"))
    }
    assert rename_dinov2(parts)["blocks.3.attn.qkv.bias"].tolist() == [0, 0, 1, 1, 2, 2]


def test_the_adapter_of_sam_med2d_equals_its_formula() -> None:
    torch.manual_seed(0)
    adapter = Adapter(8).eval()
    tokens = torch.randn(2, 16, 8)
    x = tokens.reshape(2, 4, 4, 8).permute(0, 3, 1, 2)
    weights = adapter.state_dict()
    mean = x.mean((2, 3))
    gate = torch.sigmoid(
        torch.relu(mean @ weights["channel.0.weight"].T) @ weights["channel.2.weight"].T
    )
    half = F.conv2d(gate[:, :, None, None] * x, weights["spatial.0.weight"], None, 2, 1).relu()
    back = F.conv_transpose2d(half, weights["spatial.2.weight"], None, 2, 1).relu()
    summed = (x + back).permute(0, 2, 3, 1).reshape(2, 16, 8)
    expected = F.layer_norm(summed, (8,))
    torch.testing.assert_close(adapter(tokens), expected, rtol=1e-4, atol=1e-5)


def test_the_attention_of_sam_med3d_equals_the_authors_formula() -> None:
    torch.manual_seed(0)
    side, heads, width = 3, 2, 8
    attention = Attention(width, heads, side).eval()
    for axis in "dhw":
        nn.init.normal_(attention.get_parameter(f"rel_pos_{axis}"))
    x = torch.randn(1, side, side, side, width)
    qkv = attention.qkv(x).reshape(side**3, 3, heads, width // heads).double()
    q, k, v = (qkv[:, number].transpose(0, 1) for number in range(3))  # (heads, 27, 4)
    offsets = {axis: attention.get_parameter(f"rel_pos_{axis}").double() for axis in "dhw"}
    scores = torch.zeros(heads, side**3, side**3, dtype=torch.float64)
    places = [(d, h, w) for d in range(side) for h in range(side) for w in range(side)]
    of = {place: number for number, place in enumerate(places)}
    for d, h, w in places:
        for kd, kh, kw in places:
            row = q[:, of[d, h, w]]
            score = (row * k[:, of[kd, kh, kw]]).sum(-1) / math.sqrt(width / heads)
            # Where the authors' broadcasting puts the terms: `rel_d[:, :, :, :, None, None]` of
            # five axes leaves the last one last, `rel_h[:, :, :, None, :, None]` likewise.
            score = score + row @ offsets["d"][d - kw + side - 1]
            score = score + q[:, of[d, h, kd]] @ offsets["h"][h - kw + side - 1]
            score = score + q[:, of[d, h, kh]] @ offsets["w"][kh - kw + side - 1]
            scores[:, of[d, h, w], of[kd, kh, kw]] = score
    mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(side**3, width).float()
    expected = attention.proj(mixed).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected, rtol=1e-4, atol=1e-5)


def test_windows_of_sam_med3d_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    block = Block(8, 2, window=2, side=4).eval()
    x = torch.randn(1, 4, 4, 4, 8)
    other = x.clone()
    other[:, 2:] += 1
    changed = (block(x) - block(other)).abs().amax(-1)[0]
    assert not changed[:2].any()
    assert changed[2:].all()


def test_the_stages_of_sam_med3d_are_its_quarter_depths() -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(width=8, heads=2, depth=4, side=2, window=3, outputs=4).eval()
    found = encoder(torch.randn(1, 1, 32, 32, 32))
    assert [block.window for block in encoder.blocks] == [0, 0, 0, 0]
    assert {name: tuple(value.shape[1:]) for name, value in found.items()} == {
        **{f"s{quarter}": (8, 2, 2, 2) for quarter in (1, 2, 3, 4)},
        "neck": (4, 2, 2, 2),
        "pooled": (4,),
    }


def test_suprem_normalises_each_volume_by_its_own_statistics() -> None:
    torch.manual_seed(0)
    network = UNetTaps(width=2).eval()
    volumes = torch.randn(2, 1, 16, 16, 16)
    both, alone = network(volumes), network(volumes[1:])
    torch.testing.assert_close(both["s2"][1:], alone["s2"])
    first = network.model.down_tr64["ops"][0]
    convolved = first.conv1(volumes[1:])
    expected = F.batch_norm(convolved, None, None, first.bn1.weight, first.bn1.bias, True).relu()
    torch.testing.assert_close(first(volumes[1:]), expected)


@pytest.mark.parametrize("axes", ["SPL", "RAS", "SRA", "SAR", "LIP"])
def test_maps_of_a_network_with_other_axes_lie_on_the_volume(axes: str) -> None:
    seen = {}

    class Coarse(UNetTaps):
        def taps(self, images):  # type: ignore[no-untyped-def]
            seen["input"] = images
            yield "s1", F.avg_pool3d(images, 2)
            yield "pooled", images.mean((2, 3, 4))

    volumes = torch.randn(1, 1, 4, 6, 8)
    oriented = Oriented(Coarse(width=1), axes)
    found = oriented(volumes)
    torch.testing.assert_close(found["s1"], F.avg_pool3d(volumes, 2))
    sides = {"S": 4, "I": 4, "A": 6, "P": 6, "R": 8, "L": 8}
    assert tuple(seen["input"].shape[2:]) == tuple(sides[letter] for letter in axes)


def test_axes_lead_where_their_letters_say() -> None:
    seen = []

    class Looking(UNetTaps):
        def taps(self, images):  # type: ignore[no-untyped-def]
            seen.append(images)
            yield "pooled", images.mean((2, 3, 4))

    z, y, x = torch.meshgrid(*(torch.arange(n).float() for n in (2, 3, 4)), indexing="ij")
    for volume in (z, y, x):
        Oriented(Looking(width=1), "SPL")(volume[None, None])
    up, back, left = (each[0, 0] for each in seen)
    assert up[0, 0, 0] < up[1, 0, 0], "the first axis leads to the head, as z does"
    assert back[0, 0, 0] > back[0, 1, 0], "the second leads to the back, away from where y does"
    assert left[0, 0, 0] > left[0, 0, 1], "the third leads to the left, away from where x does"


def test_levels_of_the_swin_transformer_halve_and_are_normalised() -> None:
    torch.manual_seed(0)
    network = SwinTaps(width=12, duplicates=True).eval()
    found = network(torch.randn(1, 1, 32, 32, 64))
    assert {name: tuple(value.shape[1:]) for name, value in found.items()} == {
        "stride2": (12, 16, 16, 32),
        "s1": (24, 8, 8, 16),
        "s2": (48, 4, 4, 8),
        "s3": (96, 2, 2, 4),
        "s4": (192, 1, 1, 2),
        "pooled": (192,),
    }
    assert found["s2"].mean(1).abs().max() < 1e-5


@pytest.mark.parametrize("duplicates", [True, False])
def test_which_neighbours_are_merged_is_not_left_to_the_monai_installed(duplicates: bool) -> None:
    torch.manual_seed(0)
    (layer,) = SwinTaps(width=12, duplicates=duplicates).model.layers1
    x = torch.randn(1, 2, 2, 2, 12)
    order = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    if duplicates:  # two twice, and two left out
        order += [(1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)]
    else:
        order += [(1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)]
    corners = torch.cat([x[0, d, h, w] for d, h, w in order])
    expected = F.linear(F.layer_norm(corners, (96,)), layer.downsample.reduction.weight)
    torch.testing.assert_close(layer.downsample(x)[0, 0, 0, 0], expected)
