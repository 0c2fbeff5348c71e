"""Deep reprogramming distillation: at several stages the teacher stands in for the student.

    L = L_task(z_s, y) + Σ_i [α·L_task(z_i, y) + β·τ²·KL(p_i ‖ p_s) + w·(1 − CKA(f_i, f_s,i))]

f_i = φ_i(tap_i) is put in place of the student's map of stage i, and z_i is what the rest of the
student makes of it (`injection.py`, `hybrid.py`). α, β decay to 0 during training. Where samples
are classified, the deepest stage is the one in front of the classifier, and its branch is RD's own
(`rd.py`): with stages=1 and the tap and branch of `rd` this is `rd`, bit for bit. Where positions
are, the deepest stage is the encoder's last map, and the logits, their loss and their KL are of
every position.

CKA compares the student's own map with the teacher's own, or with `cka_target=reprogrammed` with
f_i. Masks come in batches of few images, so there it is of positions rather than of whole maps.

Du, Zhou et al., "Deep Reprogramming Distillation", 2026; `docs/method.md` says what is theirs. The
deployed student is the plain one: nothing of φ_i survives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from rdcache import losses
from rdcache.errors import UsageError
from rdcache.methods.base import (
    EVERY_TASK,
    IMAGES_AND_VOLUMES,
    CachedBatch,
    Method,
    MethodConfig,
    MethodContext,
    StageName,
    Terms,
    TrainingProgress,
    require_batch_size,
)
from rdcache.methods.drd_options import DRDConfig
from rdcache.methods.hybrid import HybridPasses
from rdcache.methods.injection import Projector, injected_pairs
from rdcache.methods.rd import (
    ReprogrammingDistillation,
    decays,
    directed,
    with_gradients_to,
)
from rdcache.methods.registry import add_preset, find_method, register
from rdcache.methods.stage_pairs import StagePair, maps_of, stage_pair
from rdcache.models import StudentOutput

GRIDS = {2: 16, 3: 8}  # positions along an axis that CKA draws from
# Of those of RD's branch the ones that both presets leave at their default.
BRANCH_OPTIONS = (
    *("tap", "finer_tap", "map_side"),
    *("folds", "teacher_ema", "teacher_epochs", "teacher_weights"),
)


@register(
    "drd",
    title="Deep reprogramming distillation, recommended preset",
    needs="maps or tokens of several stages (s1 to s4)",
    paper="Du et al., arXiv 2605.04447",
    year=2026,
)
class DeepReprogrammingDistillation(Method):
    """Terms: those of RD where samples are classified, else `ce`; and for each stage that is
    injected `hybrid_<stage>` (α), `kl_<stage>` (β) and `cka_<stage>`.

    Attributes:
        rd: the deepest stage of a classifier; None where there are masks.
        deepest_maps: folds RD's tap where CKA is of its positions.
        projectors: of the injected stages, shallow to deep.
        hybrids: the student's passes from them; None where nothing is injected.
    """

    Config: ClassVar[type[MethodConfig]] = DRDConfig
    tuned = ("beta", "cka_weight")
    tasks = EVERY_TASK
    dimensions = IMAGES_AND_VOLUMES
    config: DRDConfig

    def __init__(self, config: DRDConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.has_masks = context.task == "segmentation"
        self.cka_mode = config.cka_mode
        if config.cka_mode == "auto":
            self.cka_mode = "positions" if self.has_masks else "pooled"
        if self.cka_mode == "pooled" and config.cka_weight > 0:
            require_batch_size(
                context.batch_size,
                config.cka_min_batch,
                "CKA compares the samples of a batch (options cka_mode=positions, cka_min_batch)",
            )
        self.grid = config.cka_grid or GRIDS[context.dimensions]
        self.rd: ReprogrammingDistillation | None = None
        self.deepest_maps: nn.Module | None = None
        if self.has_masks:
            _refuse_options_of_a_branch(config)
            pairs = injected_pairs(config.pairs, config.stages, None, context)
        else:
            self.rd = self._deepest_branch(context)
            count = None if config.stages is None else config.stages - 1
            pairs = injected_pairs(config.pairs, count, self.rd.tap, context)
        for pair in pairs:
            self._require_positions(pair, context)
        self.projectors = nn.ModuleList(
            Projector(pair, config.projector_width, config.feature_norm, context) for pair in pairs
        )
        self.hybrids: HybridPasses | None = None
        if pairs:
            assert context.student is not None
            self.hybrids = HybridPasses(
                context.student,
                [pair.stage for pair in pairs],
                config.hybrid_bn,
                config.hybrid_train_student_tail,
            )
        stages = [pair.stage for pair in pairs]
        if self.has_masks:  # what is behind an injected map may see any of the student's own
            stages = list(context.student_stages)
        elif self.deepest_maps is not None:
            stages.append(self.deepest_stage)
        self.student_stages = tuple(dict.fromkeys(stages))
        taps = [pair.tap.name for pair in pairs]
        self.taps = tuple(dict.fromkeys([*(() if self.rd is None else self.rd.taps), *taps]))

    def _deepest_branch(self, context: MethodContext) -> ReprogrammingDistillation:
        """RD. Where CKA is of positions or patches, its own of a batch is left out, and what folds
        its tap is kept for ours.
        """
        config = self.config
        if self.cka_mode == "pooled" or config.cka_weight == 0:
            return ReprogrammingDistillation(config, context)
        if config.cka_target != "teacher":
            raise UsageError(
                "the branch in front of the classifier has no positions of its own.",
                cka_mode=self.cka_mode,
                next="--set cka_target=teacher, or --set cka_mode=pooled",
            )
        rd = ReprogrammingDistillation(config.model_copy(update={"cka_weight": 0.0}), context)
        self.deepest_stage = list(context.student_stages)[-1]
        pair = stage_pair(rd.tap, self.deepest_stage, context)
        self._require_positions(pair, context)
        self.deepest_maps = maps_of(pair, config.feature_norm, context)
        return rd

    def _require_positions(self, pair: StagePair, context: MethodContext) -> None:
        """Refuse maps that have too few positions, or cells, in a batch for CKA to be of anything.

        Raises:
            UsageError: saying what to change.
        """
        if self.cka_mode == "pooled" or self.config.cka_weight == 0:
            return
        stride = context.student_stages[pair.stage][1]
        own = tuple(-(-side // stride) for side in context.sides)
        if not own:
            return
        most = self.grid if self.cka_mode == "positions" else self.config.cka_patches
        each = math.prod(min(*sides, most) for sides in zip(own, pair.teacher_sides, strict=True))
        count = context.batch_size * each
        if count < losses.MIN_SAMPLES:
            larger = "larger patches (rdcache extract … --patch)"
            if context.dimensions == 2:
                larger = "a larger --image-size"
            raise UsageError(
                f"CKA compares positions, and at {pair.stage} a batch has {count} of them.",
                needs=f"at least {losses.MIN_SAMPLES}",
                student=f"{_times(own)} at {pair.stage}, of {_times(context.sides)} that it sees",
                tap=f"{_times(pair.teacher_sides)} of {pair.tap.name}",
                batch=context.batch_size,
                next=f"{larger}, a larger --batch-size, shallower stages (--set "
                "pairs=TAP:STAGE,…), or --set cka_weight=0",
            )

    @property
    def teacher_epochs(self) -> int:
        """Epochs of a first stage of RD's branch."""
        return 0 if self.rd is None else self.rd.teacher_epochs

    @property
    def has_teacher_branch(self) -> bool:
        """Whether RD's branch is there, which needs nothing but taps."""
        return self.rd is not None

    @property
    def branch_taps(self) -> tuple[str, ...]:
        """RD's: the maps of shallower stages are large, and play no part in its branch."""
        return () if self.rd is None else self.rd.taps

    def teacher_state(self) -> dict[str, Any]:
        """RD's part of the state dict."""
        return {name: it for name, it in self.state_dict().items() if name.startswith("rd.")}

    def forward(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the weighted terms of all stages."""
        if self.rd is None:
            terms: Terms = {"ce": self.task_loss(student.logits, batch.target)}
        else:
            terms = self.rd(batch, student, progress)
        if self.deepest_maps is not None:
            assert self.rd is not None
            theirs = self.deepest_maps(batch.taps[self.rd.tap])
            weight = self.config.cka_weight * decays(self.config, progress)[1]
            missing = self._missing(batch, student.stages[self.deepest_stage], theirs)
            terms["cka"] = weight * missing
        return terms | self._stage_terms(batch, student, progress)

    def _stage_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the terms of the injected stages, shallow to deep."""
        if self.hybrids is None:
            return {}
        config, terms = self.config, {}
        decay, cka_decay = decays(config, progress)
        own = student.stages
        teacher: dict[str, torch.Tensor] = {}
        injected: dict[str, torch.Tensor] = {}
        for projector in self._projectors():
            stage = projector.pair.stage
            teacher[stage] = projector.maps(batch.taps[projector.pair.tap.name])
            injected[stage] = projector(teacher[stage], own[stage].shape[2:])
        logits = self.hybrids(injected, own if self.has_masks else {})
        targets = teacher if config.cka_target == "teacher" else injected
        for stage, hybrid in logits.items():
            weight = config.stage_weight
            if self.has_masks and stage == list(logits)[-1]:
                weight = 1.0
            loss = self.task_loss(hybrid, batch.target)
            terms[f"hybrid_{stage}"] = weight * config.alpha * decay * loss
            if config.beta > 0:
                kl = partial(self._kl, batch)
                divergence = directed(config, kl, student.logits, hybrid)
                terms[f"kl_{stage}"] = weight * config.beta * decay * divergence
            if config.cka_weight > 0:
                missing = self._missing(batch, own[stage], targets[stage])
                terms[f"cka_{stage}"] = weight * config.cka_weight * cka_decay * missing
        return terms

    def _kl(self, batch: CachedBatch, mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        """The task's KL, of the positions that the options ask for where there are masks."""
        config = self.config
        if not self.has_masks:
            return self.task_loss.kl(mine, theirs, config.temperature)
        inside = batch.target > 0 if config.kl_balanced else None
        if config.kl_positions is not None:
            mine, theirs = (it.movedim(1, -1).flatten(0, -2)[..., None] for it in (mine, theirs))
            inside = None if inside is None else inside.flatten()
            drawn = losses.draw_positions(len(mine), config.kl_positions, inside, mine.device)
            mine, theirs = mine[drawn], theirs[drawn]  # (drawn, C, 1)
            # Those of the foreground may be too few for half of what is drawn: weighed all the same
            inside = None if inside is None else inside[drawn, None]
        return losses.position_kl(mine, theirs, config.temperature, inside)

    def _missing(
        self, batch: CachedBatch, mine: torch.Tensor, theirs: torch.Tensor
    ) -> torch.Tensor:
        """1 − CKA of two maps, in the form that the options ask for."""
        config = self.config
        mine, theirs = with_gradients_to(config.cka_grad, mine, theirs)
        unbiased = config.cka_estimator == "unbiased"
        if self.cka_mode == "pooled":
            return 1 - losses.cka_pooled(mine, theirs, unbiased)
        if self.cka_mode == "patch":
            return 1 - losses.cka_patches(mine, theirs, config.cka_patches, unbiased)
        foreground = batch.target > 0 if self.has_masks and config.cka_balanced else None
        return 1 - losses.cka_positions(
            mine, theirs, self.grid, config.cka_positions, foreground, unbiased
        )

    def teacher_terms(self, batch: CachedBatch, progress: TrainingProgress) -> Terms:
        """Compute what RD's first stage trains."""
        assert self.rd is not None
        return self.rd.teacher_terms(batch, progress)

    def teacher_branch(self, taps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify by RD's branch."""
        assert self.rd is not None
        return self.rd.teacher_branch(taps)

    def trainable_parameters(self, stage: StageName) -> Iterator[nn.Parameter]:
        """List those of RD's branch, and beside the student the projectors'."""
        if self.rd is not None:
            yield from self.rd.trainable_parameters(stage)
        if stage == "student":
            yield from self.projectors.parameters()
            if self.hybrids is not None:
                yield from self.hybrids.parameters()

    def begin_stage(self, stage: StageName) -> None:
        """Tell RD."""
        if self.rd is not None:
            self.rd.begin_stage(stage)

    def after_step(self) -> None:
        """Move RD's averaged branch."""
        if self.rd is not None:
            self.rd.after_step()

    def _projectors(self) -> list[Projector]:
        return [it for it in self.projectors if isinstance(it, Projector)]


def _times(sides: Iterable[int]) -> str:
    return "×".join(map(str, sides))


def _refuse_options_of_a_branch(config: DRDConfig) -> None:
    """Refuse what only a branch that classifies samples could follow.

    Raises:
        UsageError: naming the options.
    """
    given = [
        name
        for name in BRANCH_OPTIONS
        if getattr(config, name) != DRDConfig.model_fields[name].default
    ]
    if given:
        raise UsageError(
            "there is no branch of the teacher that could label every position by itself.",
            unread=", ".join(given),
            instead="--set pairs=TAP:STAGE,… says which taps are read",
        )


add_preset(
    "drd-paper",
    of="drd",
    title="Deep reprogramming distillation as literally read from the paper",
    options={
        **find_method("rd-paper").options,
        "block": "conv3",
        "n_blocks": 1,
        "stages": None,
        "pairs": None,
        "projector_width": None,
        "stage_weight": 1.0,
        "hybrid_bn": "shared",
        "hybrid_train_student_tail": True,
        "cka_mode": "auto",
        "cka_positions": 1024,
        "cka_grid": None,
        "cka_balanced": True,
        "cka_patches": 4,
        "kl_balanced": False,
        "kl_positions": None,
    },
    training=find_method("rd-paper").training,
)
