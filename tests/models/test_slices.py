"""Teachers of images on volumes: each slice as an image, the maps stacked, the vectors averaged."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rdcache.errors import UsageError
from rdcache.models import Preprocessing, Teacher, WeightsInfo, for_volumes
from rdcache.models.slices import SliceWise, slice_numbers
from rdcache.models.taps import TapNetwork, measure_shapes
from rdcache.models.volume_preprocessing import VolumePreprocessing

SIZE = 16


class TwoStages(TapNetwork):
    """A map, its tokens and its mean."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.late = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.most = 0

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        self.most = max(self.most, len(images))
        early = torch.relu(self.early(images))
        yield "s3", early
        late = self.late(early)
        yield "s4", late
        yield "tokens", late.flatten(2).transpose(1, 2)
        yield "pooled", late.mean((2, 3))


class OfVolumes(TapNetwork):
    """One convolution with stride 4 in all directions."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Conv3d(1, 5, 4, stride=4)

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        late = self.late(images)
        yield "s4", late
        yield "pooled", late.mean((2, 3, 4))


def teacher_of_images(preprocessing: Preprocessing | None = None) -> Teacher:
    torch.manual_seed(0)
    network = TwoStages()
    return Teacher(
        "small",
        "small",
        network,
        measure_shapes(network, SIZE),
        preprocessing or Preprocessing(size=SIZE),
        WeightsInfo("random", "0" * 64, "none"),
    )


def teacher_of_volumes() -> Teacher:
    torch.manual_seed(0)
    network = OfVolumes()
    return Teacher(
        "boxes",
        "boxes",
        network,
        measure_shapes(network, (8, 8, 8), 1),
        VolumePreprocessing((8, 8, 8), divisor=4),
        WeightsInfo("random", "0" * 64, "none"),
    )


def boxes(count: int, channels: int, *sides: int) -> torch.Tensor:
    return torch.rand(count, channels, *sides, generator=torch.Generator().manual_seed(1))


def test_each_slice_gives_what_the_teacher_gives_for_it_as_an_image() -> None:
    teacher = teacher_of_images()
    volumes = boxes(2, 1, 5, SIZE, SIZE)
    found = for_volumes(teacher, 1, (5, SIZE, SIZE)).forward_taps(volumes, ["s4", "pooled"])
    assert found["s4"].shape == (2, 6, 5, 2, 2)
    for number in range(5):
        grey = volumes[:, :, number].expand(-1, 3, -1, -1)
        alone = teacher.forward_taps(teacher.of_images.standardise(grey), ["s4"])["s4"]
        torch.testing.assert_close(found["s4"][:, :, number], alone)
    torch.testing.assert_close(found["pooled"], found["s4"].mean((2, 3, 4)))


def test_shapes_are_those_of_the_box_and_tokens_are_left_out() -> None:
    taps = for_volumes(teacher_of_images(), 1, (5, 40, 24)).taps
    assert {name: (tap.kind, tap.shape) for name, tap in taps.items()} == {
        "s3": ("map3d", (4, 5, 4, 4)),
        "s4": ("map3d", (6, 5, 2, 2)),
        "pooled": ("vector", (6,)),
    }


def test_slices_of_another_size_are_resized_to_the_teachers_square() -> None:
    teacher = teacher_of_images()
    volumes = boxes(1, 1, 2, 40, 24)
    found = for_volumes(teacher, 1, (2, 40, 24)).forward_taps(volumes, ["s4"])["s4"]
    squares = F.interpolate(volumes[:, 0], (SIZE, SIZE), mode="bilinear", antialias=True)
    first = teacher.of_images.standardise(squares[:, :1].expand(-1, 3, -1, -1))
    torch.testing.assert_close(found[:, :, 0], teacher.forward_taps(first, ["s4"])["s4"])


def test_only_every_third_slice_is_seen_when_so_asked() -> None:
    teacher = teacher_of_images()
    volumes = boxes(1, 1, 9, SIZE, SIZE)
    all_of_them = for_volumes(teacher, 1, (9, SIZE, SIZE)).forward_taps(volumes, ["s4"])["s4"]
    third = for_volumes(teacher, 1, (9, SIZE, SIZE), slices=3)
    assert third.taps["s4"].shape == (6, 3, 2, 2)
    found = third.forward_taps(volumes, ["s4"])["s4"]
    torch.testing.assert_close(found, all_of_them[:, :, [1, 4, 7]])


@pytest.mark.parametrize(("depth", "every"), [(7, 1), (7, 2), (8, 3), (2, 5), (1, 1)])
def test_the_slices_that_are_seen_stand_evenly(depth: int, every: int) -> None:
    numbers = slice_numbers(depth, every)
    count = -(-depth // every)
    centres = (np.arange(count) + 0.5) * depth / count
    assert numbers == [int(each) for each in centres]


def test_three_channels_are_colours_and_four_are_averaged() -> None:
    teacher = teacher_of_images()
    colours = boxes(1, 3, 2, SIZE, SIZE)
    found = for_volumes(teacher, 3, (2, SIZE, SIZE)).forward_taps(colours, ["s4"])["s4"]
    image = teacher.of_images.standardise(colours[:, :, 1])
    torch.testing.assert_close(found[:, :, 1], teacher.forward_taps(image, ["s4"])["s4"])
    four = boxes(1, 4, 2, SIZE, SIZE)
    patch = (2, SIZE, SIZE)
    mean = four.mean(1, keepdim=True)
    torch.testing.assert_close(
        for_volumes(teacher, 4, patch).forward_taps(four, ["s4"])["s4"],
        for_volumes(teacher, 1, patch).forward_taps(mean, ["s4"])["s4"],
    )


def test_memory_is_bounded_however_many_slices_there_are() -> None:
    network = TwoStages()
    wise = SliceWise(network, Preprocessing(size=SIZE), 1)
    wise.at_once = 4
    chunked = wise(boxes(2, 1, 7, SIZE, SIZE))
    assert network.most == 4
    wise.at_once = 100
    whole = wise(boxes(2, 1, 7, SIZE, SIZE))
    for name, value in whole.items():
        torch.testing.assert_close(chunked[name], value)
    assert SliceWise(network, Preprocessing(size=1024), 1).at_once == 1


def test_a_compiled_network_sees_chunks_of_one_size_only(monkeypatch: pytest.MonkeyPatch) -> None:
    network = TwoStages()
    sizes = []

    def compiled(images: torch.Tensor, names: object) -> dict[str, torch.Tensor]:
        sizes.append(len(images))
        return network(images)

    monkeypatch.setattr(network, "compiled", lambda: compiled)
    wise = SliceWise(network, Preprocessing(size=SIZE), 1)
    wise.at_once = 4
    volumes = boxes(2, 1, 7, SIZE, SIZE)
    found = wise.compiled()(volumes, None)
    assert sizes == [4, 4, 4, 4]
    torch.testing.assert_close(found["s4"], wise(volumes)["s4"])


def test_darkest_and_brightest_of_each_slice_become_0_and_1() -> None:
    flat = Preprocessing(SIZE, (0.0,) * 3, (1.0,) * 3, scaling="minmax")
    images = boxes(2, 3, SIZE, SIZE) * 0.2 + 0.3
    scaled = flat.standardise(images)
    assert scaled.amin((1, 2, 3)).tolist() == [0, 0]
    assert scaled.amax((1, 2, 3)).tolist() == [1, 1]
    assert not flat.standardise(torch.full((1, 3, 4, 4), 0.7)).any(), "a blank image"
    assert "scaling" in flat.to_dict()
    assert "scaling" not in Preprocessing().to_dict(), "fingerprints of older stores remain"


def test_a_window_of_its_own_goes_before_the_datasets_rule() -> None:
    values = np.array([-2000, -1024, 512, 2048, 3000], np.float32).reshape(1, 5, 1, 1)
    own = VolumePreprocessing((8, 8, 8), window=(-1024, 2048)).scaled(values, 0, 1)
    assert own.ravel().tolist() == [0, 0, 0.5, 1, 1]
    low, high = np.full((1, 1, 1, 1), 0.0), np.full((1, 1, 1, 1), 1024.0)
    datasets = VolumePreprocessing((8, 8, 8)).scaled(values, low, high)
    assert datasets.ravel().tolist() == [0, 0, 0.5, 1, 1]
    assert datasets.dtype == np.float32


def test_beyond_the_border_is_what_the_network_sees_as_nothing() -> None:
    low = np.full((1, 1, 1, 1), -175.0)
    own = VolumePreprocessing((8, 8, 8), window=(-1000, 1000))
    assert own.scaled(np.full((1, 1, 1, 1), own.outside(low), np.float32), low, 250).item() == 0
    assert VolumePreprocessing((8, 8, 8)).outside(low) is low


def test_a_teacher_of_volumes_takes_boxes_of_other_sizes() -> None:
    teacher = teacher_of_volumes()
    assert (teacher.dimensions, teacher.input_shape) == (3, (1, 8, 8, 8))
    larger = for_volumes(teacher, 1, (8, 12, 16))
    assert larger.taps["s4"].shape == (5, 2, 3, 4)
    assert larger.input_shape == (1, 8, 12, 16)
    assert teacher.taps["s4"].shape == (5, 2, 2, 2), "the teacher itself stays as it is"
    assert for_volumes(teacher, 1) is teacher


def test_what_does_not_suit_a_teacher_of_volumes_is_refused_in_a_sentence() -> None:
    teacher = teacher_of_volumes()
    with pytest.raises(UsageError, match="multiples of 4") as error:
        for_volumes(teacher, 1, (8, 10, 8))
    assert "--patch 8,12,8" in str(error.value)
    with pytest.raises(UsageError, match="1 channel; these have 4"):
        for_volumes(teacher, 4)
    with pytest.raises(UsageError, match="--slices"):
        for_volumes(teacher, 1, slices=2)
    with pytest.raises(UsageError, match="looks at volumes"):
        _ = teacher.of_images


def test_volumes_of_one_channel_are_repeated_where_the_network_has_three() -> None:
    rgb = VolumePreprocessing((2, 2, 2), channels=3, mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    values = boxes(2, 1, 2, 2, 2)
    normalised = rgb.normalise(values)
    for channel, (mean, std) in enumerate(((0.5, 0.5), (0.25, 1.0), (0.0, 2.0))):
        torch.testing.assert_close(normalised[:, channel], (values[:, 0] - mean) / std)
