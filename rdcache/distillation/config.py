"""What `rdcache distill` can be told: one class for the Python call, the flags and the recipes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from rdcache.data import salt_of_environment
from rdcache.distillation.shared_options import (
    CheckpointSecondsOption,
    SeedsOption,
    ThreadsOption,
    from_call,
)
from rdcache.distillation.subset import Subset
from rdcache.errors import UsageError
from rdcache.extraction.shared_options import DataDirOption, RootOption, SaltOption
from rdcache.methods import ClassWeights, TeacherHeadName, find_method
from rdcache.store.signatures import required_signature
from rdcache.tasks import HEADLINES

SelectMetric = Literal["accuracy", "balanced_accuracy", "auroc", "average_precision", "dice", "iou"]
VOLUME_SIDE = 64  # which volumes are resized to unless told otherwise

# What decides where and how fast a run is made, but not what comes out of it.
CIRCUMSTANCES = {
    "teacher",
    "dataset",
    "teacher_head",  # an option of the method, once the config is resolved
    "seeds",
    "device",
    "compile",
    "resident",
    "num_threads",
    "checkpoint_seconds",
    "out",
    "root",
    "data_dir",
    "require_signature",
    "verify_shards",
    "inputs_cache",
}


class DistillConfig(BaseModel):
    """Options of phase 2. Field descriptions are the help texts of the command line.

    A preset (see `rdcache list methods`) replaces defaults; what is given explicitly stays.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    student: str = Field(
        default="shufflenet",
        description="Name of the student; see `rdcache list students`. Several, comma-separated, "
        "are trained side by side.",
    )
    method: str = Field(default="rd", description="Method or preset; see `rdcache list methods`.")
    teacher: str | None = Field(
        default=None,
        description="Take the newest store of this teacher (default: any). The stores of several, "
        "comma-separated, are read in step.",
    )
    dataset: str | None = Field(
        default=None,
        description="Take the newest store of this dataset (default: any). For a store of "
        "`folder:` or `table:` it also says where the images lie now.",
    )
    seeds: SeedsOption = (0,)
    order_seed: int | None = Field(
        default=None,
        description="Seed of the order of batches, of their views and of jitter (default: each "
        "run's own seed). With one for all, the runs of several seeds are trained side by side "
        "from one reading of the cache; initial weights, dropout and folds follow each run's own.",
    )
    epochs: int = Field(default=100, gt=0, description="Passes over the training images.")
    batch_size: int = Field(default=32, gt=0, description="Images per step.")
    image_size: int = Field(
        default=224,
        ge=16,
        description="Side of the student's input in pixels. Volumes: of the cube that they are "
        "resized to (default: 64); where the store's views are patches, the student sees these.",
    )
    working_scale: float = Field(
        default=2.0,
        ge=0,
        description="Training images finer than so many pixels for each of the student's are "
        "reduced once; 0 for none.",
    )
    lr: float = Field(default=5e-3, gt=0, description="Largest learning rate of AdamW.")
    weight_decay: float = Field(
        default=0.01, ge=0, description="Weight decay; none on biases and norms."
    )
    schedule: Literal["cosine", "onecycle", "step", "constant"] = Field(
        default="cosine",
        description="Learning rate over time; step divides by 10 at 150, 180 and 210 of every "
        "240 parts of the training.",
    )
    warmup_epochs: float = Field(
        default=5.0,
        ge=0,
        description="Epochs of linear warm-up (at most a fifth of the training; one-cycle has its "
        "own).",
    )
    clip: float = Field(default=5.0, ge=0, description="Largest gradient norm; 0 for any.")
    amp: Literal["auto", "off", "bf16"] = Field(
        default="auto",
        description="bfloat16 autocast; auto: on a GPU, and on a CPU where a probe shows that it "
        "is faster, which trainings of at least 1000 steps are worth.",
    )
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="If not 0: the moving average of the student's weights with this decay per "
        "step is evaluated and saved.",
    )
    student_weights: str | None = Field(
        default=None,
        description="Initial weights of the student: imagenet, or a file (default: random).",
    )
    jitter: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Largest random change of brightness and contrast of the student's input.",
    )
    views: int | None = Field(
        default=None, gt=0, description="Train on the first so many views (default: all)."
    )
    train_fraction: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Train on this part of the training images: of each class, by whole groups "
        "such as patients; a smaller part lies within a larger one.",
    )
    subset_seed: int | None = Field(
        default=None,
        description="Seed of the choice of that part (default: each run's own seed). With one for "
        "all, runs that have --order-seed in common are trained side by side.",
    )
    label_smoothing: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the label spread over all classes."
    )
    class_weights: ClassWeights = Field(
        default="none", description="Weigh classes equally in the loss, or balanced by frequency."
    )
    select: Literal["best", "last"] = Field(
        default="best", description="Keep the epoch that is best on validation, or the last."
    )
    select_metric: SelectMetric | None = Field(
        default=None,
        description="What best means; of equal epochs the later is kept (default: accuracy; "
        "auroc for several labels, dice for masks).",
    )
    validate_every: int = Field(default=1, gt=0, description="Epochs between validations.")
    nsd_tolerance: float | None = Field(
        default=None,
        gt=0,
        description="Distance within which two surfaces of a segmentation agree, for the NSD "
        "(default: 2 pixels; 1 mm of volumes).",
    )
    teacher_head: TeacherHeadName | None = Field(
        default=None,
        description="Where logits of the teacher come from, for methods that use any: `own`, the "
        "store's; `linear-probe`, a classifier fitted on its features; `rd`, a reprogrammer "
        "trained in a first stage; `none`; `auto` (default): its own, else a probe.",
    )
    method_options: dict[str, Any] = Field(
        default={}, description="Option of the method, as in `temperature=2`; repeatable."
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1.")
    compile: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Compile the student's forward pass; auto: for trainings of at least 2000 "
        "steps on a GPU.",
    )
    resident: Literal["auto", "device", "host", "disk"] = Field(
        default="auto",
        description="Where cached taps are during training: all on the GPU, all in main memory, or "
        "read batch by batch; auto: what fits, and saves time.",
    )
    shuffle: Literal["auto", "full", "shards"] = Field(
        default="auto",
        description="Order of an epoch: all samples at random, or a few shards at a time, which "
        "reads a disk in large pieces; auto: by shards what is larger than three quarters of the "
        "memory of the machine, or of the job.",
    )
    num_threads: ThreadsOption = None
    checkpoint_seconds: CheckpointSecondsOption = 20.0
    out: Path = Field(default=Path("runs"), description="Where runs are kept.")
    root: RootOption = None
    data_dir: DataDirOption = None
    inputs_cache: Path | None = Field(
        default=None,
        description="Keep decoded images in a private folder there, for later runs (default: in "
        "memory only, as many as fit).",
    )
    uid_salt: SaltOption = Field(
        default_factory=salt_of_environment,
        description="Salt that the store's uids were made with, or @FILE (default: "
        "RDCACHE_UID_SALT, else none).",
    )
    verify_shards: bool = Field(
        default=False,
        description="Compare every tensor with its checksum when it is first read.",
    )
    require_signature: Path | None = Field(
        default_factory=required_signature,
        description="Public key (PEM): refuse a store that is not signed by it (default: "
        "RDCACHE_REQUIRE_SIGNATURE, else none).",
    )

    @field_validator("working_scale")
    @classmethod
    def _never_blurred(cls, scale: float) -> float:
        if 0 < scale < 1:
            raise ValueError("it must be 0 or at least 1: less would blur what the student sees")
        return scale

    def resolved(self) -> DistillConfig:
        """Replace defaults by the preset's values, and complete the method's options.

        Raises:
            UnknownNameError: no such method, or the method has no such option.
            UsageError: a value out of range, or an option that nothing would read.
        """
        card = find_method(self.method)
        preset = {
            name: value
            for name, value in card.training.items()
            if name not in self.model_fields_set
        }
        options = dict(self.method_options)
        card.require_read(options)
        if self.teacher_head is not None and "teacher_head" in card.method.Config.model_fields:
            options.setdefault("teacher_head", self.teacher_head)
        complete = card.config(options).model_dump()
        update = {**preset, "teacher_head": None, "method_options": complete}
        return self.model_copy(update=update)

    def for_task(self, task: str, dimensions: int) -> DistillConfig:
        """The config with the defaults of a task in place of those that depend on it."""
        update: dict[str, Any] = {"select_metric": self.select_metric or HEADLINES[task]}
        if dimensions == 3 and "image_size" not in self.model_fields_set:
            update["image_size"] = VOLUME_SIDE
        return self.model_copy(update=update)

    def for_each_student(self) -> list[DistillConfig]:
        """One config for each of the students, where `student` lists several.

        Raises:
            UsageError: the list is empty, or names one twice.
        """
        names = [name.strip() for name in self.student.split(",") if name.strip()]
        if not names or len(set(names)) < len(names):
            raise UsageError("each student is to be named once.", got=self.student)
        return [self.model_copy(update={"student": name}) for name in names]

    def subset(self, seed: int) -> Subset:
        """Which part of the training images the run of a seed sees."""
        own = self.subset_seed
        return Subset.of(self.train_fraction, seed if own is None else own)

    def digest(self, store_fingerprint: str) -> str:
        """Identify what a run of this resolved config on a store will come to, seed aside."""
        deciding = self.model_dump(mode="json", exclude=CIRCUMSTANCES)
        if self.shuffle != "shards":
            del deciding["shuffle"]
        if self.select_metric is None:
            deciding["select_metric"] = HEADLINES["multiclass"]
        if self.nsd_tolerance is None:
            del deciding["nsd_tolerance"]
        if self.train_fraction == 1:
            del deciding["train_fraction"], deciding["subset_seed"]
        if self.method_options.get("teacher_weights", 0) is None:
            del deciding["method_options"]["teacher_weights"]
        if self.method_options.get("folds") == 0:
            deciding["method_options"].pop("calibrate_folds", None)
        if self.student_weights is not None and Path(self.student_weights).is_file():
            content = Path(self.student_weights).read_bytes()
            deciding["student_weights"] = hashlib.sha256(content).hexdigest()
        text = json.dumps({"config": deciding, "store": store_fingerprint}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def config_from_options(student: str, method: str, options: dict[str, Any]) -> DistillConfig:
    """Sort options of a Python call into those of training and those of the method.

    Raises:
        UsageError: a value out of range.
        UnknownNameError: a name that neither has.
    """
    return from_call(DistillConfig, {"student": student, "method": method}, options)
