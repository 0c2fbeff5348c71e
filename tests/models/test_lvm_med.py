"""LVM-Med's ViT against SAM's formula, from tensors in the published layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import published_layouts as published
import pytest
import torch
import torch.nn.functional as F

from rdcache.errors import WeightsMismatchError
from rdcache.models import Teacher, load_teacher

Tensors = dict[str, torch.Tensor]
GRID, HEADS, WIDTH = 14, 12, 64


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return published.tensors_of(published.lvm_med())


@pytest.fixture(scope="module")
def teacher(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Teacher]:
    path = tmp_path_factory.mktemp("lvm-med") / "lvmmed_vit.pth"
    torch.save(tensors, path)
    yield load_teacher("lvm-med", path)
    path.unlink()


def linear(x: torch.Tensor, t: Tensors, name: str) -> torch.Tensor:
    return x @ t[f"{name}.weight"].double().T + t[f"{name}.bias"].double()


def layer_norm(x: torch.Tensor, t: Tensors, name: str) -> torch.Tensor:
    weight, bias = t[f"{name}.weight"].double(), t[f"{name}.bias"].double()
    return F.layer_norm(x, (768,), weight, bias, eps=1e-6)


def resized(offsets: torch.Tensor) -> torch.Tensor:
    """Linear interpolation to 27 offsets, pixel centres aligned as areas (half-pixel centres)."""
    count = 2 * GRID - 1
    if len(offsets) == count:
        return offsets
    at = ((torch.arange(count).double() + 0.5) * len(offsets) / count - 0.5).clamp(min=0)
    left = at.floor().long()
    right = (left + 1).clamp(max=len(offsets) - 1)
    share = (at - left)[:, None]
    return offsets[left] * (1 - share) + offsets[right] * share


def attention(x: torch.Tensor, t: Tensors, name: str) -> torch.Tensor:
    """SAM's attention over the grid: q·k/√d plus q·(relative row) plus q·(relative column)."""
    q, k, v = linear(x, t, f"{name}.qkv").reshape(GRID * GRID, 3, HEADS, WIDTH).permute(1, 2, 0, 3)
    scores = (q / WIDTH**0.5) @ k.transpose(-2, -1)
    distance = torch.arange(GRID)[:, None] - torch.arange(GRID)[None, :] + GRID - 1
    rows, columns = (resized(t[f"{name}.rel_pos_{axis}"].double())[distance] for axis in "hw")
    on_grid = q.reshape(HEADS, GRID, GRID, WIDTH)
    by_row = torch.einsum("nhwc,hkc->nhwk", on_grid, rows)
    by_column = torch.einsum("nhwc,wkc->nhwk", on_grid, columns)
    bias = by_row[..., :, None] + by_column[..., None, :]
    scores = scores + bias.reshape(HEADS, GRID * GRID, GRID * GRID)
    mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(GRID * GRID, -1)
    return linear(mixed, t, f"{name}.proj")


def third_block(images: torch.Tensor, t: Tensors) -> torch.Tensor:
    """The map after blocks 0, 1 (windows of 14: the whole grid) and 2 (global)."""
    kernel, bias = t["patch_embed.proj.weight"].double(), t["patch_embed.proj.bias"].double()
    x = F.conv2d(images.double(), kernel, bias, stride=16)[0].flatten(1).T
    for number in range(3):
        name = f"blocks.{number}"
        x = x + attention(layer_norm(x, t, f"{name}.norm1"), t, f"{name}.attn")
        hidden = F.gelu(linear(layer_norm(x, t, f"{name}.norm2"), t, f"{name}.mlp.lin1"))
        x = x + linear(hidden, t, f"{name}.mlp.lin2")
    return x.T.reshape(1, 768, GRID, GRID)


def test_the_published_encoder_has_the_papers_number_of_parameters(tensors: Tensors) -> None:
    with_neck = sum(value.numel() for value in tensors.values())
    neck = sum(value.numel() for name, value in tensors.items() if name.startswith("neck."))
    assert (with_neck, with_neck - neck) == (86_525_184, 85_737_728)


def test_the_first_global_block_equals_the_formula(teacher: Teacher, tensors: Tensors) -> None:
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    value = teacher.forward_taps(images, ["s1"])["s1"]
    expected = third_block(images, tensors)
    assert ((value - expected).norm() / expected.norm()).item() < 1e-4


def test_every_tensor_but_the_neck_has_its_place(teacher: Teacher, tensors: Tensors) -> None:
    own = teacher.network.model.state_dict()
    for name, value in tensors.items():
        if name.startswith("neck."):
            continue
        mine = own.pop(name.replace("mlp.lin", "mlp.fc"))
        if len(value) == 127:
            assert mine.shape == (27, 64)
            torch.testing.assert_close(mine, resized(value.double()).float(), rtol=0, atol=1e-5)
        else:
            assert torch.equal(mine, value), name
    assert not own
    assert teacher.weights.matched == "170 of 170"


def test_pooled_is_the_mean_of_the_last_block_without_neck(teacher: Teacher) -> None:
    seen = {}
    images = torch.zeros(1, 3, 224, 224)
    last = teacher.network.model.blocks[11]
    hook = last.register_forward_hook(lambda module, inputs, output: seen.update(last=output))
    outputs = teacher.forward_taps(images, ["s4", "tokens", "pooled"])
    hook.remove()
    torch.testing.assert_close(
        outputs["s4"], seen["last"].permute(0, 3, 1, 2), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(outputs["tokens"], seen["last"].flatten(1, 2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs["pooled"], seen["last"].mean((1, 2)), rtol=1e-4, atol=1e-4)


def test_sam_itself_is_not_taken_for_lvm_med(tensors: Tensors, tmp_path: Path) -> None:
    sam = {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}
    torch.save(sam, tmp_path / "sam_vit_b.pth")
    with pytest.raises(WeightsMismatchError, match="absolute positions"):
        load_teacher("lvm-med", tmp_path / "sam_vit_b.pth")
