"""Folding taps to maps, and standardising their channels."""

from __future__ import annotations

import pytest
import torch

from rdcache.errors import UsageError
from rdcache.methods import ChannelStatistics
from rdcache.methods.reprogrammer import Reprogrammer, ReprogrammerConfig
from rdcache.store import TapSpec
from rdcache.store.tap_axes import as_maps


def test_tokens_fold_back_to_their_grid() -> None:
    maps = torch.randn(2, 5, 3, 3)
    tokens = maps.flatten(2).transpose(1, 2)
    assert torch.equal(as_maps(tokens, "tokens"), maps)


def test_a_class_token_before_the_grid_is_dropped() -> None:
    maps = torch.randn(2, 5, 4, 4)
    tokens = torch.cat([torch.zeros(2, 1, 5), maps.flatten(2).transpose(1, 2)], dim=1)
    assert torch.equal(as_maps(tokens, "tokens"), maps)


def test_tokens_of_no_grid_become_one_column() -> None:
    assert as_maps(torch.randn(2, 7, 5), "tokens").shape == (2, 5, 7, 1)


def test_volumes_are_refused() -> None:
    with pytest.raises(UsageError, match="not volumes"):
        Reprogrammer(TapSpec("v", "map3d", (4, 2, 2, 2)), 8, ReprogrammerConfig())


def test_standardised_taps_do_not_depend_on_the_teachers_scale() -> None:
    tap = torch.randn(32, 6, 4, 4)
    scales = torch.tensor([1.0, 10, 100, 0.5, 3, 50])

    def reprogram(values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(0)
        statistics = ChannelStatistics(values.mean(dim=(0, 2, 3)), values.std(dim=(0, 2, 3)))
        spec = TapSpec("s4", "map2d", (6, 4, 4))
        features: torch.Tensor = Reprogrammer(spec, 8, ReprogrammerConfig(width=8), statistics)(
            values
        )
        return features

    shifted = tap * scales.view(1, -1, 1, 1) + 20
    assert torch.allclose(reprogram(tap), reprogram(shifted), atol=1e-3)


def test_a_constant_channel_is_not_blown_up() -> None:
    statistics = ChannelStatistics(torch.zeros(3), torch.tensor([1.0, 0.0, 2.0]))
    module = Reprogrammer(TapSpec("p", "vector", (3,)), 4, ReprogrammerConfig(), statistics)
    assert module.maps.scale is not None
    assert module.maps.scale.flatten().tolist() == pytest.approx([1.0, 20.0, 0.5])
    mostly_dead = ChannelStatistics(torch.zeros(4), torch.tensor([0.0, 0.0, 2.0, 0.0]))
    module = Reprogrammer(TapSpec("p", "vector", (4,)), 4, ReprogrammerConfig(), mostly_dead)
    assert module.maps.scale is not None
    assert module.maps.scale.flatten().tolist() == pytest.approx([10.0, 10.0, 0.5, 10.0])


def test_a_three_layer_projector_is_three_convolutions() -> None:
    config = ReprogrammerConfig(block="conv3", n_blocks=1, width=None, spatial="map")
    module = Reprogrammer(TapSpec("s4", "map2d", (6, 4, 4)), 8, config)
    kernels = [m.kernel_size for m in module.modules() if isinstance(m, torch.nn.Conv2d)]
    assert kernels == [(1, 1), (3, 3), (1, 1)]


@pytest.mark.parametrize(("side", "kernels"), [(None, 3), (9, 3), (4, 3), (1, 1)])
def test_large_maps_are_averaged_before_they_are_reprogrammed(
    side: int | None, kernels: int
) -> None:
    """To 9, 9, 4 of 7 whose windows overlap, and 1 position a side."""
    spec = TapSpec("s3", "map2d", (5, 7, 9))
    config = ReprogrammerConfig(width=8, spatial="map", map_side=side)
    module = Reprogrammer(spec, 4, config).eval()
    tap = torch.randn(2, *spec.shape)
    sides = tuple(min(length, side or length) for length in spec.shape[1:])
    averaged = torch.nn.functional.adaptive_avg_pool2d(tap, sides)
    expected = module.layers(averaged).mean(dim=(2, 3))
    torch.testing.assert_close(module(tap), expected)
    found = {m.kernel_size for m in module.modules() if isinstance(m, torch.nn.Conv2d)}
    assert found == {(1, 1), (kernels, kernels)}


def test_only_the_long_sides_of_a_volumes_map_are_averaged() -> None:
    spec = TapSpec("s4", "map3d", (5, 2, 9, 2))
    config = ReprogrammerConfig(width=8, spatial="map", map_side=3)
    module = Reprogrammer(spec, 4, config, dimensions=3).eval()
    tap = torch.randn(2, *spec.shape)
    expected = module.layers(torch.nn.functional.avg_pool3d(tap, (1, 3, 1))).mean(dim=(2, 3, 4))
    torch.testing.assert_close(module(tap), expected)
