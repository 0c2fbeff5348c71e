"""What adapters compute, against formulas in float64, and how many numbers they train."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from rdcache.errors import UnknownNameError, UsageError
from rdcache.models import Preprocessing, Teacher, WeightsInfo, load_teacher, lvm_med
from rdcache.models.adapters import ADAPTERS, AdaptedNetwork, build_adapted, find_adapter, merged
from rdcache.models.adapters.tower import Tower, tower_of
from rdcache.models.taps import TapNetwork, measure_shapes
from rdcache.models.timm_taps import TimmTaps

Tensors = dict[str, torch.Tensor]
CLASSES = 3
IN_TRANSFORMERS = [name for name, card in ADAPTERS.items() if card.adapter is not None]


def teacher_of(network: TapNetwork, size: int) -> Teacher:
    weights = WeightsInfo("random", "0" * 64, "none")
    shapes = measure_shapes(network, size)
    return Teacher("invented", "invented", network, shapes, Preprocessing(size=size), weights)


def plain_vit(**options: Any) -> Teacher:
    """Four blocks of width 16 on a grid of 2×2."""
    torch.manual_seed(0)
    model = timm.models.VisionTransformer(
        img_size=32, embed_dim=16, depth=4, num_heads=2, num_classes=0, **options
    )
    return teacher_of(TimmTaps(model), 32)


def small_sam(window: int) -> Teacher:
    """SAM's encoder on a grid of 4×4, as LVM-Med has it: no neck, no absolute positions."""
    torch.manual_seed(0)
    model = VisionTransformerSAM(
        img_size=64,
        embed_dim=16,
        depth=4,
        num_heads=2,
        num_classes=0,
        use_abs_pos=False,
        use_rel_pos=True,
        window_size=window,
        global_attn_indexes=(1, 3),
        neck_chans=None,
    )
    for name, parameter in model.named_parameters():
        if "rel_pos" in name:
            nn.init.normal_(parameter)
    model.neck = nn.Identity()
    return teacher_of(TimmTaps(model), 64)


TEACHERS = {"plain": plain_vit, "sam": lambda: small_sam(4)}


def adapted(teacher: Teacher, name: str, **options: Any) -> AdaptedNetwork:
    card = find_adapter(name)
    torch.manual_seed(1)
    return build_adapted(card, teacher, card.settled(options), CLASSES).eval()


def images_for(teacher: Teacher) -> torch.Tensor:
    size = teacher.preprocessing.size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def stirred(network: AdaptedNetwork) -> AdaptedNetwork:
    """With adapter and classifier as if they had been trained."""
    torch.manual_seed(3)
    for module in filter(None, (network.adapter, network.head)):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    return network


# How many numbers are trained.


def full_size(name: str) -> Tower:
    """The parts of a published network, without any numbers."""
    with torch.device("meta"):
        if name == "lvm-med":
            model = lvm_med.build().backbone
        else:
            model = timm.create_model(name, num_classes=0)
    tower = tower_of(model)
    assert tower is not None
    return tower


def count(tower: Tower, name: str, **options: Any) -> int:
    card = find_adapter(name)
    assert card.adapter is not None
    with torch.device("meta"):
        adapter = card.adapter(tower, card.settled(options))
    return sum(parameter.numel() for parameter in adapter.parameters())


def test_parameters_in_a_vit_b_are_as_many_as_published() -> None:
    tower = full_size("vit_base_patch16_224")
    assert count(tower, "lora") == 147_456, "MeLo, table 1: 0.15 M; 12·2·(4·768 + 768·4)"
    assert count(tower, "adaptformer") == 1_189_632, "AdaptFormer-64: 1.19 M without classifier"
    assert count(tower, "vpt", tokens=50) == 50 * 12 * 768, "VPT-deep: p·L·D"
    assert count(tower, "vpt-shallow", tokens=50) == 50 * 768, "VPT-shallow: p·D"
    assert count(tower, "vqt") == 12 * 768, "VQT: q·L·D"
    lpt = 12 * 10 * 768 + 20 * 6 * 10 * 768 + 20 * 768
    assert count(tower, "lpt") == lpt == 1_029_120, "LPT: shared, pool for six blocks, keys"


def test_lvm_med_takes_as_many_as_a_vit_b() -> None:
    tower, vit = full_size("lvm-med"), full_size("vit_base_patch16_224")
    for name in IN_TRANSFORMERS:
        assert count(tower, name) == count(vit, name), name


def test_the_classifier_of_query_tuning_sees_every_block() -> None:
    network = adapted(plain_vit(), "vqt", queries=2)
    assert network.head.in_features == 16 * (1 + 4 * 2)


# What they compute.


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("name", ["lora", "adaptformer", "linear-probe", "full"])
def test_an_untrained_adapter_leaves_the_teacher_as_it_is(kind: str, name: str) -> None:
    teacher = TEACHERS[kind]()
    images = images_for(teacher)
    expected = teacher.forward_taps(images, list(teacher.taps))
    with torch.no_grad():
        found = adapted(teacher, name)(images)
    for tap, value in expected.items():
        torch.testing.assert_close(found[tap], value, rtol=0, atol=1e-5)
    assert found["logits"].shape == (2, CLASSES)


@pytest.mark.parametrize("kind", TEACHERS)
def test_queries_leave_the_transformers_own_tokens_as_they_are(kind: str) -> None:
    teacher = TEACHERS[kind]()
    images = images_for(teacher)
    expected = teacher.forward_taps(images, ["s1", "s4", "tokens", "pooled"])
    with torch.no_grad():
        found = stirred(adapted(teacher, "vqt"))(images)
    for tap in ("s1", "s4", "tokens"):
        torch.testing.assert_close(found[tap], expected[tap], rtol=0, atol=1e-5)
    pooled = F.normalize(expected["pooled"], dim=1)
    torch.testing.assert_close(found["pooled"][:, :16], pooled, rtol=0, atol=1e-5)


def block_of(model: Any, number: int) -> Tensors:
    return {name: v.double() for name, v in model.blocks[number].state_dict().items()}


def linear(x: torch.Tensor, t: Tensors, name: str) -> torch.Tensor:
    return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]


def norm(x: torch.Tensor, t: Tensors, name: str) -> torch.Tensor:
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return x * t[f"{name}.weight"] + t[f"{name}.bias"]


def block(x: torch.Tensor, t: Tensors, keys: int, grid: int = 0) -> torch.Tensor:
    """A block of two heads on tokens (N, 16), of which the first `keys` are looked at; with a
    grid, the first grid² tokens have SAM's relative positions.
    """
    q, k, v = (
        linear(norm(x, t, "norm1"), t, "attn.qkv").reshape(len(x), 3, 2, 8).permute(1, 2, 0, 3)
    )
    scores = q @ k[:, :keys].transpose(-2, -1) / 8**0.5
    for i in range(grid * grid):
        for j in range(grid * grid):
            down, across = i // grid - j // grid + grid - 1, i % grid - j % grid + grid - 1
            position = t["attn.rel_pos_h"][down] + t["attn.rel_pos_w"][across]
            scores[:, i, j] += q[:, i] @ position
    mixed = (scores.softmax(-1) @ v[:, :keys]).transpose(0, 1).reshape(len(x), 16)
    x = x + linear(mixed, t, "attn.proj")
    return x + linear(F.gelu(linear(norm(x, t, "norm2"), t, "mlp.fc1")), t, "mlp.fc2")


def embedded(network: Any, images: torch.Tensor) -> torch.Tensor:
    return network.tower.embed(images)[0][0].detach().double()


@pytest.mark.parametrize(("kind", "grid", "tokens"), [("plain", 0, 5), ("sam", 4, 16)])
def test_deep_prompts_are_new_in_each_block_and_have_no_position(
    kind: str, grid: int, tokens: int
) -> None:
    teacher = TEACHERS[kind]()
    images = images_for(teacher)[:1]
    network: Any = stirred(adapted(teacher, "vpt", tokens=3))
    x = embedded(network, images)
    for number, prompts in enumerate(network.adapter.prompts.detach().double()):
        x = block(torch.cat([x, prompts]), block_of(network.base.model, number), tokens + 3, grid)
        x = x[:tokens]
    expected = x[-grid * grid or 1 :].float()
    with torch.no_grad():
        found = network(images)["tokens"][0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_shallow_prompts_go_along_to_the_end() -> None:
    teacher = plain_vit()
    images = images_for(teacher)[:1]
    network: Any = stirred(adapted(teacher, "vpt-shallow", tokens=3))
    x = torch.cat([embedded(network, images), network.adapter.prompts.detach().double()])
    for number in range(4):
        x = block(x, block_of(network.base.model, number), len(x))
    with torch.no_grad():
        found = network(images)
    torch.testing.assert_close(found["tokens"][0], x[1:5].float(), rtol=1e-4, atol=1e-4)
    assert found["s4"].shape == (1, 16, 2, 2)


@pytest.mark.parametrize(("kind", "grid", "tokens"), [("plain", 0, 5), ("sam", 4, 16)])
def test_queries_read_what_a_block_makes_of_them(kind: str, grid: int, tokens: int) -> None:
    teacher = TEACHERS[kind]()
    images = images_for(teacher)[:1]
    network: Any = stirred(adapted(teacher, "vqt", queries=2))
    x = embedded(network, images)
    read = []
    for number, queries in enumerate(network.adapter.queries.detach().double()):
        both = block(torch.cat([x, queries]), block_of(network.base.model, number), tokens, grid)
        x, answers = both[:tokens], both[tokens:].flatten()
        read.append(answers / answers.norm())
    with torch.no_grad():
        found = network(images)["pooled"][0, 16:]
    torch.testing.assert_close(found, torch.cat(read).float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [("vpt", {"tokens": 8}), ("vpt-shallow", {"tokens": 8}), ("vqt", {"queries": 8})],
)
def test_each_image_of_a_batch_drops_other_numbers(name: str, options: dict[str, int]) -> None:
    teacher = plain_vit()
    network = stirred(adapted(teacher, name, dropout=0.5, **options)).train()
    twice = images_for(teacher)[:1].expand(2, -1, -1, -1)
    with torch.no_grad():
        first, second = network.classify(twice).features
    assert not torch.allclose(first, second, rtol=0, atol=1e-2)


def test_the_bottleneck_stands_beside_the_mlp() -> None:
    teacher = plain_vit()
    images = images_for(teacher)[:1]
    network: Any = stirred(adapted(teacher, "adaptformer", bottleneck=4, scale=0.5))
    x = embedded(network, images)
    for number, bottleneck in enumerate(network.adapter.bottlenecks):
        t = block_of(network.base.model, number)
        own = {name: value.double() for name, value in bottleneck.state_dict().items()}
        # What enters the MLP's half of the block: the block without its MLP.
        silent = t | {
            name: torch.zeros_like(t[name]) for name in ("mlp.fc2.weight", "mlp.fc2.bias")
        }
        beside = linear(linear(block(x, silent, len(x)), own, "down").relu(), own, "up")
        x = block(x, t, len(x)) + 0.5 * beside
    with torch.no_grad():
        found = network(images)["tokens"][0]
    torch.testing.assert_close(found, x[1:].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TEACHERS)
def test_low_rank_changes_are_of_queries_and_values_and_can_be_merged(kind: str) -> None:
    teacher, images = TEACHERS[kind](), images_for(TEACHERS[kind]())
    network: Any = stirred(adapted(teacher, "lora", rank=2))
    with torch.no_grad():
        unmerged = network(images)
    before = [each.attn.qkv.weight.detach().clone() for each in network.base.model.blocks]
    plain: Any = merged(network)
    assert plain.adapter is None
    with torch.no_grad():
        found = plain(images)
    for tap, value in unmerged.items():
        torch.testing.assert_close(found[tap], value, rtol=1e-4, atol=1e-4)
    for block_, change, old in zip(
        plain.base.model.blocks, network.adapter.changes, before, strict=True
    ):
        new = (block_.attn.qkv.weight - old).chunk(3)
        for part, low_rank in ((new[0], change.query), (new[2], change.value)):
            torch.testing.assert_close(part, low_rank.up @ low_rank.down, rtol=0, atol=1e-6)
        assert new[1].count_nonzero() == 0, "keys stay"


def test_groups_are_those_whose_keys_are_most_like_the_image() -> None:
    network: Any = stirred(adapted(plain_vit(), "lpt", pool=5, top=2, tokens=3))
    adapter = network.adapter
    description = torch.randn(4, 16)
    chosen, similarity = adapter.choose(description)
    for row in range(4):
        cosines = [
            float(description[row] @ key / description[row].norm() / key.norm())
            for key in adapter.keys.detach()
        ]
        best = sorted(range(5), key=lambda group: -cosines[group])[:2]
        expected = (adapter.groups[best[0]] + adapter.groups[best[1]]) / 2
        torch.testing.assert_close(chosen[row], expected)
        assert similarity[row].item() == pytest.approx(sum(cosines[it] for it in best), abs=1e-5)


def test_groups_join_the_shared_prompts_in_the_last_half() -> None:
    teacher = plain_vit()
    images = images_for(teacher)[:1]
    network: Any = stirred(adapted(teacher, "lpt", pool=1, top=1, tokens=3))
    x = embedded(network, images)
    for number, prompts in enumerate(network.adapter.shared.detach().double()):
        groups = network.adapter.groups[0].detach().double()
        own = [prompts] if number < 2 else [prompts, groups[number - 2]]
        joined = torch.cat([x, *own])
        x = block(joined, block_of(network.base.model, number), len(joined))[:5]
    with torch.no_grad():
        found = network(images)["tokens"][0]
    torch.testing.assert_close(found, x[1:].float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", TEACHERS)
@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_every_tensor_that_is_trained_gets_a_gradient(kind: str, name: str) -> None:
    teacher = TEACHERS[kind]()
    network = stirred(adapted(teacher, name, **({"pool": 2} if name == "lpt" else {})))
    adapter = network.adapter
    assert adapter is not None
    trained = set()
    for stage in adapter.stages:
        network.zero_grad()
        parameters = adapter.begin_stage(stage)
        output = network.classify(images_for(teacher))
        similarity = 0 if output.similarity is None else output.similarity.sum()
        (F.cross_entropy(output.logits, torch.tensor([0, 1])) + similarity).backward()
        assert all(p.grad is not None and p.grad.any() for p in parameters), stage
        trained |= set(parameters)
    assert trained == set(adapter.parameters())
    assert all(p.grad is None for p in network.base.parameters()), "the teacher stays frozen"


# Where they do not apply.


def test_several_windows_take_changes_but_no_tokens() -> None:
    teacher = small_sam(2)
    images = images_for(teacher)
    expected = teacher.forward_taps(images, ["s4"])["s4"]
    with torch.no_grad():
        found = adapted(teacher, "lora")(images, ["s4"])["s4"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for name in ("vpt", "vpt-shallow", "vqt", "lpt"):
        with pytest.raises(UsageError, match=r"several windows[\s\S]*lora, adaptformer"):
            adapted(teacher, name)


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_a_convolutional_teacher_says_what_does_apply(name: str) -> None:
    teacher = load_teacher("timm:test_efficientnet", "random")
    with pytest.raises(UsageError, match=r"no blocks of global[\s\S]*linear-probe, full"):
        adapted(teacher, name)


def test_a_black_box_can_only_be_probed() -> None:
    teacher = plain_vit()
    teacher.network.compilable = False
    teacher.network.__class__ = type("Opaque", (TapNetwork,), {"taps": TimmTaps.taps})
    for name in ("full", "lora"):
        with pytest.raises(UsageError, match=r"program[\s\S]*apply +linear-probe$"):
            adapted(teacher, name)
    assert adapted(teacher, "linear-probe").head[1].in_features == 16


def test_a_slip_in_an_option_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"option of lora[\s\S]*rank"):
        find_adapter("lora").settled({"rang": 2})
    with pytest.raises(UsageError, match="greater than 0"):
        find_adapter("lora").settled({"rank": 0})
    with pytest.raises(UsageError, match="cannot be chosen"):
        find_adapter("lpt").settled({"pool": 1})
