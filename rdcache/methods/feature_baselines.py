"""What methods share that compare maps: the pairs they compare, and what folds the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from rdcache.methods.base import MethodConfig, MethodContext
from rdcache.methods.baseline import Baseline
from rdcache.methods.feature_options import (
    FeatureConfig,
    FeatureNorm,
    MapConfig,
    ScaleFreeStagesConfig,
    StagesConfig,
)
from rdcache.methods.stage_pairs import StagePair, maps_of, stage_pair, stage_pairs


class MapBaseline(Baseline):
    """Base of methods that compare one map of the teacher with one of the student.

    Attributes:
        pair: the two.
        maps: folds the teacher's.
    """

    Config: ClassVar[type[MethodConfig]] = MapConfig
    config: MapConfig

    def __init__(self, config: MapConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.pair = stage_pair(context.tap(config.tap).name, config.stage, context)
        self.ask_for(self.pair.tap.name)
        self.student_stages = (self.pair.stage,)
        self.maps = maps_of(self.pair, config.feature_norm, context)


class StagesBaseline(Baseline):
    """Base of methods that compare maps of several stages.

    Attributes:
        pairs: which are compared.
        maps: for each of them, what folds the teacher's.
    """

    Config: ClassVar[type[MethodConfig]] = StagesConfig
    config: ScaleFreeStagesConfig

    def __init__(self, config: ScaleFreeStagesConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.pairs = self.choose_pairs(context)
        self.ask_for(*(pair.tap.name for pair in self.pairs))
        self.student_stages = tuple(pair.stage for pair in self.pairs)
        norm: FeatureNorm = config.feature_norm if isinstance(config, FeatureConfig) else "none"
        self.maps = nn.ModuleList(maps_of(pair, norm, context) for pair in self.pairs)

    def choose_pairs(self, context: MethodContext) -> Sequence[StagePair]:
        """Pair the stages that are asked for."""
        return stage_pairs(self.config.stages, context)
