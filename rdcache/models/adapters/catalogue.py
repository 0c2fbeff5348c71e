"""The ways to adapt a teacher: what each is, and a teacher in, an adapted network out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from rdcache.configs import validated_options
from rdcache.errors import UnknownNameError, UsageError
from rdcache.models.adapters.adaptformer import AdaptFormer, AdaptFormerOptions
from rdcache.models.adapters.base import Adapter, AdapterOptions
from rdcache.models.adapters.heads import cosine_head, linear_head, standardising_head
from rdcache.models.adapters.lora import Lora, LoraOptions
from rdcache.models.adapters.lpt import GroupPrompts, LptOptions
from rdcache.models.adapters.networks import (
    AdaptedNetwork,
    HeadedNetwork,
    TowerNetwork,
    classified_tap,
)
from rdcache.models.adapters.tower import Tower, WindowedTower, tower_of
from rdcache.models.adapters.vpt import DeepPrompts, ShallowPrompts, VptOptions
from rdcache.models.adapters.vqt import QueryTuning, VqtOptions
from rdcache.models.taps import TapNetwork
from rdcache.models.teacher import Teacher
from rdcache.models.timm_taps import TimmTaps


@dataclass(frozen=True)
class AdapterCard:
    """One way to adapt a teacher.

    Attributes:
        adapter: makes what is put into a transformer; None where nothing is.
        options: what it can be told.
        head: makes the classifier for (features, classes).
        whole: whether the teacher's own tensors are trained.
    """

    name: str
    title: str
    paper: str
    adapter: Callable[[Tower, Any], Adapter] | None = None
    options: type[AdapterOptions] = AdapterOptions
    head: Callable[[int, int], nn.Module] = linear_head
    whole: bool = False

    @property
    def needs(self) -> str:
        """Which teachers it applies to, in a few words."""
        if self.adapter is not None:
            return "a vision transformer of timm, or LVM-Med's ViT"
        return "any teacher but torchscript: and onnx:" if self.whole else "any teacher"

    def settled(self, given: Mapping[str, Any]) -> AdapterOptions:
        """The options, checked and completed.

        Raises:
            UnknownNameError: no such option.
            UsageError: a value out of range.
        """
        return validated_options(self.name, self.options, given)


ADAPTERS = {
    card.name: card
    for card in (
        AdapterCard(
            "linear-probe", "a linear classifier on frozen features", "–", head=standardising_head
        ),
        AdapterCard("full", "full fine-tuning: all of the teacher's tensors", "–", whole=True),
        AdapterCard(
            "lora",
            "MeLo: low-rank changes of queries and values",
            "Zhu et al., ISBI 2024",
            Lora,
            LoraOptions,
        ),
        AdapterCard(
            "adaptformer",
            "AdaptFormer: bottlenecks beside the MLPs",
            "Chen et al., NeurIPS 2022",
            AdaptFormer,
            AdaptFormerOptions,
            standardising_head,
        ),
        AdapterCard(
            "vpt",
            "visual prompt tuning, deep: prompts in every block",
            "Jia et al., ECCV 2022",
            DeepPrompts,
            VptOptions,
        ),
        AdapterCard(
            "vpt-shallow",
            "visual prompt tuning, shallow: prompts at the start",
            "Jia et al., ECCV 2022",
            ShallowPrompts,
            VptOptions,
        ),
        AdapterCard(
            "vqt",
            "visual query tuning: queries read from every block",
            "Tu et al., CVPR 2023",
            QueryTuning,
            VqtOptions,
        ),
        AdapterCard(
            "lpt",
            "long-tailed prompt tuning: shared prompts, then groups of them",
            "Dong et al., ICLR 2023",
            GroupPrompts,
            LptOptions,
            cosine_head,
        ),
    )
}


def find_adapter(name: str) -> AdapterCard:
    """The card of a way to adapt.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in ADAPTERS:
        raise UnknownNameError.of("way to adapt a teacher", name, ADAPTERS)
    return ADAPTERS[name]


def build_adapted(
    card: AdapterCard, teacher: Teacher, options: AdapterOptions, classes: int
) -> AdaptedNetwork:
    """Put an adapter, untrained, into a teacher's network, and a classifier behind it.

    The network is the teacher's own, not a copy. New tensors are drawn from PyTorch's generator.

    Raises:
        UsageError: this way does not apply to this teacher.
    """
    network: Any = teacher.network
    tap, positions, width = classified_tap(teacher)
    if card.whole and not network.compilable:
        raise _refusal(card, teacher, "its program cannot be trained", "linear-probe")
    if card.adapter is None:
        return HeadedNetwork(network, card.head(width, classes), tap, positions)
    tower = _tower(card, teacher, network)
    adapter = card.adapter(tower, options)
    if adapter.needs_one_window and isinstance(tower, WindowedTower) and not tower.single_window:
        raise _refusal(
            card,
            teacher,
            "it looks at the image in several windows, and added tokens belong to none",
            "linear-probe, full, lora, adaptformer",
        )
    return TowerNetwork(network, tower, adapter, card.head(width + adapter.read_width, classes))


def merged(network: AdaptedNetwork) -> AdaptedNetwork:
    """The same function without its adapter, where that can become part of the teacher's tensors;
    else the network itself.
    """
    if not isinstance(network, TowerNetwork) or not isinstance(network.adapter, Lora):
        return network
    network.adapter.merge(network.tower)
    return HeadedNetwork(network.base, network.head, "pooled", ())


def _tower(card: AdapterCard, teacher: Teacher, network: TapNetwork) -> Tower:
    tower = tower_of(network.model) if isinstance(network, TimmTaps) else None
    if tower is not None:
        return tower
    if not network.compilable:
        raise _refusal(card, teacher, "nobody can look into its program", "linear-probe")
    raise _refusal(
        card,
        teacher,
        "it has no blocks of global attention and MLP, as a plain vision transformer has",
        "linear-probe, full",
    )


def _refusal(card: AdapterCard, teacher: Teacher, why: str, instead: str) -> UsageError:
    return UsageError(
        f"{card.name} cannot be put into {teacher.name}.", why=why, what_does_apply=instead
    )
