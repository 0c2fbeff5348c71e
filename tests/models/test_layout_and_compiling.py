"""How a teacher's arithmetic is laid out and compiled changes its speed, not what it computes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small_inputs import Pooling
from torch import nn

from rdcache.errors import UsageError
from rdcache.extraction import ExtractConfig, plan_extraction, run_extraction
from rdcache.models import Preprocessing, Teacher, load_teacher
from rdcache.models.taps import TapNetwork, measure_shapes
from rdcache.models.teacher import WeightsInfo
from rdcache.store import verify_store

Script = Callable[[nn.Module], str]


class TwoConvolutions(TapNetwork):
    """A map and its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 8, 3, stride=4)
        self.late = nn.Conv2d(8, 16, 3, stride=4)

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        maps = self.late(torch.relu(self.early(images)))
        yield "s4", maps
        yield "pooled", maps.mean((2, 3))


def small_teacher(seed: int = 0) -> Teacher:
    torch.manual_seed(seed)
    network = TwoConvolutions()
    return Teacher(
        name="small",
        architecture="small",
        network=network,
        shapes=measure_shapes(network, 64),
        preprocessing=Preprocessing(size=64),
        weights=WeightsInfo("random", "0" * 64, "none"),
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("timm:resnet18", torch.channels_last),
        ("timm:efficientnet_lite0", torch.channels_last),
        ("timm:vit_tiny_patch16_224", torch.contiguous_format),
    ],
)
def test_networks_that_mostly_convolve_have_their_channels_last(
    name: str, expected: torch.memory_format
) -> None:
    assert load_teacher(name, weights="random", device="cpu").memory_format == expected


def test_an_exported_program_keeps_its_layout(script: Script) -> None:
    teacher = load_teacher(script(nn.Conv2d(3, 4, 3)), device="cpu")
    assert teacher.memory_format == torch.contiguous_format


def test_taps_come_contiguous_and_with_the_numbers_of_the_other_layout() -> None:
    teacher = small_teacher()
    images = torch.randn(3, 3, 64, 64)
    maps = teacher.forward_taps(images, ["s4"])["s4"]
    assert maps.is_contiguous()
    plain = teacher.network.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(maps, plain(images, ("s4",))["s4"], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # of PyTorch, about itself
def test_a_compiled_teacher_gives_the_same_numbers() -> None:
    teacher, images = small_teacher(), torch.randn(3, 3, 64, 64)
    before = teacher.forward_taps(images, ["s4", "pooled"])
    assert not teacher.compiled
    after = teacher.compile().forward_taps(images, ["s4", "pooled"])
    assert teacher.compiled
    assert list(after) == ["s4", "pooled"]
    for name, values in after.items():
        torch.testing.assert_close(values, before[name], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_teacher_sees_batches_of_one_size_only(
    few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = set()
    monkeypatch.setattr(
        "rdcache.extraction.plan.load_teacher", lambda *given, **options: small_teacher()
    )

    def extracted(root: str, compiled: bool) -> Path:
        options = ExtractConfig(
            teacher="small",
            dataset=f"folder:{few}",
            views="clean",
            batch_size=6,
            compile=compiled,
            root=tmp_path / root,
        )
        plan = plan_extraction(options)
        forward = plan.teacher._forward

        def noted(images: torch.Tensor, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
            sizes.add(len(images))
            return forward(images, names)

        plan.teacher._forward = noted
        return run_extraction(plan)

    plain = extracted("plain", False).store
    sizes.clear()
    compiled = extracted("compiled", True).store
    assert sizes == {6}, "16 images: the last four are filled up with blanks"
    assert compiled.manifest["fingerprint"] == plain.manifest["fingerprint"]
    assert compiled.manifest["provenance"]["compiled"] is True
    assert "compiled" not in plain.manifest["provenance"]
    assert verify_store(compiled.location) == []
    for tap, values in plain.read(range(16), 0).items():
        torch.testing.assert_close(compiled.read(range(16), 0)[tap], values, rtol=2e-3, atol=1e-3)


def test_an_exported_program_cannot_be_compiled(script: Script) -> None:
    with pytest.raises(UsageError, match="exported program"):
        load_teacher(script(Pooling(1.0)), device="cpu").compile()


def test_a_missing_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as settings

    monkeypatch.setattr(settings.cpp, "cxx", ("/no/such/compiler",))
    teacher = small_teacher(seed=1).compile()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UsageError, match="cannot be compiled") as caught:
            teacher.forward_taps(torch.randn(2, 3, 64, 64), ["s4"])
    assert "--compile" in caught.value.facts["next"]
    assert "\n" not in caught.value.facts["why"]
