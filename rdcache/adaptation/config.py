"""What `rdcache adapt` can be told: one class for the Python call, the flags and the recipes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rdcache.adaptation.defaults import TRAINING, Training
from rdcache.data import salt_of_environment
from rdcache.distillation.shared_options import (
    CheckpointSecondsOption,
    SeedsOption,
    ThreadsOption,
    from_call,
)
from rdcache.errors import UsageError
from rdcache.extraction.shared_options import (
    DropLeaksOption,
    FitOption,
    SaltOption,
    SplitSeedOption,
    ValFractionOption,
    WeightsOption,
)
from rdcache.methods import ClassWeights
from rdcache.models.adapters import find_adapter

# What decides where and how fast a run is made, but not what comes out of it.
CIRCUMSTANCES = {
    "teacher",
    "dataset",
    "weights",
    "seeds",
    "device",
    "num_threads",
    "checkpoint_seconds",
    "out",
    "data_dir",
}


class AdaptConfig(BaseModel):
    """Options of an adaptation. Field descriptions are the help texts of the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: str = Field(description="Name of the teacher; see `rdcache list teachers`.")
    dataset: str = Field(description="Name of the dataset; see `rdcache list datasets`.")
    method: str = Field(
        default="lora",
        description="lora, adaptformer, vpt, vpt-shallow, vqt, lpt, linear-probe, or full (all of "
        "the teacher's tensors); see `rdcache list adapters`.",
    )
    weights: WeightsOption = None
    seeds: SeedsOption = (0,)
    split_seed: SplitSeedOption = 0
    val_fraction: ValFractionOption = 0.15
    drop_leaks: DropLeaksOption = False
    views: str = Field(
        default="32",
        description="Views of each training image: clean, flip, d4, or a number K of crops that "
        "counts the clean view. An image is seen through another one in each epoch.",
    )
    fit: FitOption = "squash"
    epochs: int = Field(default=50, gt=0, description="Passes over the training images.")
    batch_size: int = Field(default=32, gt=1, description="Images per step.")
    optimiser: Literal["auto", "adamw", "sgd"] = Field(
        default="auto",
        description="AdamW, or SGD with momentum 0.9; auto: the method's own. "
        "The other one wants --lr.",
    )
    lr: float | None = Field(
        default=None, gt=0, description="Largest learning rate (default: the method's own)."
    )
    weight_decay: float | None = Field(
        default=None,
        ge=0,
        description="Weight decay; none on biases and norms (default: the method's own).",
    )
    layer_decay: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Factor of the learning rate from each block of a transformer to the one "
        "before it, where all tensors are trained (default: the method's own).",
    )
    schedule: Literal["cosine", "onecycle", "step", "constant"] = Field(
        default="cosine", description="Learning rate over time."
    )
    warmup_epochs: float = Field(
        default=5.0, ge=0, description="Epochs of linear warm-up, at most a fifth of the training."
    )
    clip: float = Field(default=5.0, ge=0, description="Largest gradient norm; 0 for any.")
    amp: Literal["auto", "off", "bf16"] = Field(
        default="auto", description="bfloat16 autocast; auto: on a GPU that has it."
    )
    jitter: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Largest random change of brightness and contrast in training.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the label spread over all classes (not lpt)."
    )
    class_weights: ClassWeights = Field(
        default="none",
        description="Weigh classes equally in the loss, or balanced by frequency (not lpt).",
    )
    select: Literal["best", "last"] = Field(
        default="best", description="Keep the epoch that is best on validation, or the last."
    )
    select_metric: Literal["accuracy", "balanced_accuracy"] = Field(
        default="accuracy", description="What best means; of equal epochs the later is kept."
    )
    validate_every: int = Field(default=1, gt=0, description="Epochs between validations.")
    method_options: dict[str, Any] = Field(
        default={}, description="Option of the method, as in `rank=8`; repeatable."
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1.")
    num_threads: ThreadsOption = None
    checkpoint_seconds: CheckpointSecondsOption = 20.0
    out: Path = Field(default=Path("runs"), description="Where runs are kept.")
    data_dir: Path | None = Field(
        default=None,
        description="Where datasets and weights are looked for (default: RDCACHE_DATA, else "
        "`data`).",
    )
    uid_salt: SaltOption = Field(default_factory=salt_of_environment)

    def resolved(self) -> AdaptConfig:
        """Fill in the method's own defaults, and complete its options.

        Raises:
            UnknownNameError: no such method, or the method has no such option.
            UsageError: an option out of range, or one that has no place in this method.
        """
        card = find_adapter(self.method)
        training = TRAINING[self.method]
        self._require_own(training)
        own = {
            "lr": training.rate(self.batch_size),
            "weight_decay": training.weight_decay,
            "layer_decay": training.layer_decay,
        }
        changes: dict[str, Any] = {
            name: value for name, value in own.items() if getattr(self, name) is None
        }
        if self.optimiser == "auto":
            changes["optimiser"] = training.optimiser
        options = card.settled(self.method_options).model_dump()
        return self.model_copy(update={**changes, "method_options": options})

    def _require_own(self, training: Training) -> None:
        """Refuse what the method's defaults do not go with."""
        if self.optimiser not in ("auto", training.optimiser) and self.lr is None:
            raise UsageError(
                f"the default learning rate of {self.method} is not one for {self.optimiser}.",
                default=f"{training.rate(self.batch_size):g}, for {training.optimiser}",
                next=f"--lr with a rate for {self.optimiser}, or leave --optimiser out",
            )
        if training.own_losses and (self.class_weights != "none" or self.label_smoothing):
            raise UsageError(
                f"{self.method} has losses of its own, which know neither --class-weights nor "
                "--label-smoothing.",
                class_weights=self.class_weights,
                label_smoothing=self.label_smoothing,
                next="leave them out, or another --method",
            )

    def digest(self, weights: str, dataset: str) -> str:
        """Identify what a run of this resolved config will come to, seed aside.

        Args:
            weights: digest of the teacher's weights.
            dataset: digest of the dataset.
        """
        deciding = self.model_dump(mode="json", exclude=CIRCUMSTANCES)
        text = json.dumps({"config": deciding, "weights": weights, "dataset": dataset})
        return hashlib.sha256(text.encode()).hexdigest()


def config_from_options(teacher: str, dataset: str, options: dict[str, Any]) -> AdaptConfig:
    """Sort options of a Python call into those of training and those of the method.

    Raises:
        UsageError: a value out of range.
    """
    return from_call(AdaptConfig, {"teacher": teacher, "dataset": dataset}, options)
