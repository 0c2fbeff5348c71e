"""Teacher branches of finished runs: what a run keeps of them, and how they are made ready again.

The file holds every tensor that the branch needs, under its name in the method and the classifier
included, as it was when the run's `test_teacher_branch` was measured. The teacher is not in it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from rdcache.configs import validated
from rdcache.data import ImageDataset
from rdcache.distillation.config import DistillConfig
from rdcache.distillation.preparing import Job, build_untrained
from rdcache.distillation.run import TEACHER_BRANCH, Run
from rdcache.distillation.shared_sources import Sources
from rdcache.distillation.statistics import channels_of
from rdcache.distillation.subset import EVERYTHING, Subset
from rdcache.errors import RunNotFoundError, StaleStoreError, reason_of
from rdcache.files import write_bytes
from rdcache.methods import ChannelStatistics, Method
from rdcache.store import Store

METADATA_KEY = "rdcache_teacher_branch"
COUNTERS = "_extra_state"  # how often a moving average was moved: of no use but to training


def save_teacher_branch(method: Method, path: Path) -> None:
    """Write a method's tensors to a safetensors file, whole or not at all.

    Raises:
        FileWriteError: it cannot be written.
    """
    tensors = {
        name: value.detach().cpu().contiguous().clone()  # safetensors holds no tensor twice
        for name, value in method.teacher_state().items()
        if isinstance(value, torch.Tensor)
    }
    # Not `save_file`, which makes files that only their owner may read.
    data = save(tensors, {METADATA_KEY: json.dumps({"taps": list(method.branch_taps)})})
    write_bytes(path, data)


def load_teacher_branch(run: Run, store: Store, dataset: ImageDataset) -> Method:
    """Build a run's method again and give it the tensors that were kept: its `teacher_branch` then
    classifies what the run's `test_teacher_branch` was measured with. No shard is read.

    Args:
        store: that the run was made from.
        dataset: the images behind it.

    Returns:
        The method, on the CPU, in evaluation mode.

    Raises:
        StaleStoreError: the store is another one.
        RunNotFoundError: the run kept no teacher branch, or one that does not fit its options.
    """
    if store.fingerprint.digest != run.result["store"]["fingerprint"]:
        raise StaleStoreError(
            "this store is not the one that the run was made from.",
            run=run.path,
            store=store.where,
        )
    path = run.path / TEACHER_BRANCH
    if not path.is_file():
        raise RunNotFoundError(
            "this run kept no teacher branch.",
            looked_for=path,
            next="the same `rdcache distill` with --overwrite, where its method has one",
        )
    # The student only gives its width here: its initial weights may have been a download.
    config = validated(DistillConfig, {**run.config["config"], "student_weights": None})
    sources = _WithoutReading(store, dataset, torch.device("cpu"), lambda note: None)
    with torch.random.fork_rng(devices=[]):
        _, method, _ = build_untrained(sources, Job(config, run.seed))
    expected = {name for name in method.teacher_state() if not name.endswith(COUNTERS)}
    try:
        tensors = load_file(path)
        method.load_state_dict(tensors, strict=False)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise _unfitting(path, reason_of(error)) from error
    if differing := expected ^ tensors.keys():
        raise _unfitting(path, f"not in both: {', '.join(sorted(differing)[:3])}")
    return method.eval().requires_grad_(False)


class _WithoutReading(Sources):
    """Sources of a method whose numbers are loaded from a file: what was once computed from tensors
    has its shape only.
    """

    def statistics(self, tap: str, subset: Subset = EVERYTHING) -> ChannelStatistics:
        channels = channels_of(self.store.taps[tap])
        return ChannelStatistics(torch.zeros(channels), torch.ones(channels))

    def probe(self, tap: str, subset: Subset = EVERYTHING) -> tuple[torch.Tensor, torch.Tensor]:
        classes = len(self.store.manifest["dataset"]["classes"])
        weight = torch.zeros(classes, channels_of(self.store.taps[tap]))
        return weight, torch.zeros(classes)


def _unfitting(path: Path, why: str) -> RunNotFoundError:
    return RunNotFoundError(
        "the teacher branch of this run is damaged, or of another method.", file=path, why=why
    )
