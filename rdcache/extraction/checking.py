"""A store and the teacher that made it: the plan found again, samples compared, damage mended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdcache.data import DatasetSpec, ViewSpec, salt_as_recorded
from rdcache.errors import StaleStoreError, StoreFormatError, UsageError
from rdcache.extraction.config import ExtractConfig
from rdcache.extraction.forward import forward_of
from rdcache.extraction.plan import ExtractionPlan, plan_extraction
from rdcache.extraction.run import run_extraction
from rdcache.progress import Progress, ignore
from rdcache.store import Location, Problem, Store, StoreWriter, open_store, read_manifest
from rdcache.store.arrays import receipt_object
from rdcache.store.manifest import fingerprint_of, layout_of, require_root
from rdcache.store.signatures import required_signature

# Largest relative error ‖stored − now‖ / ‖now‖ of a sample: a few roundings of the stored format,
# and what another machine's order of sums makes of it.
TOLERANCES = {"float32": 1e-3, "float16": 2e-3, "bfloat16": 1e-2, "int8": 1e-1}
TOLERANCE_OF_BFLOAT16_ARITHMETIC = 5e-2
# Families whose names go on with a path.
FILES = ("torchscript", "onnx", "folder", "table", "adapted", "student")


@dataclass(frozen=True)
class TapAgreement:
    """How a tap's stored samples agree with what the teacher gives now.

    Attributes:
        cosine: smallest cosine over the samples.
        error: largest ‖stored − now‖ / ‖now‖ over the samples.
        tolerance: of `error`.
    """

    tap: str
    samples: int
    cosine: float
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance."""
        return self.error <= self.tolerance


def plan_again(
    location: Location,
    *,
    teacher: str | None = None,
    dataset: str | None = None,
    data_dir: Path | None = None,
    weights: str | None = None,
    device: str = "auto",
    salt: str | None = None,
    require_signature: Path | None = None,
) -> ExtractionPlan:
    """Work out the plan that a store was extracted by, from its manifest.

    Args:
        teacher: its name, for `torchscript:`, `onnx:` and `adapted:`, whose files a store does not
            know.
        dataset: where its images lie now, for `folder:` and `table:`.
        require_signature: public key by which stores must be signed that tensors are copied from.
        weights: the teacher's weight file, if it was given by name.
        salt: of the store's uids, where they are salted.

    Raises:
        StoreFormatError: the manifest does not say how the store was extracted.
        StaleStoreError: teacher, weights or images are not what they were.
        RdcacheError: see `plan_extraction`.
    """
    manifest = read_manifest(location)
    if "splits" in fingerprint_of(manifest, location).parts:
        raise UsageError(
            "this store holds only some splits of a dataset, as `rdcache pull --split` made it.",
            store=location,
            next="pull it again, or ask the store that it is a part of",
        )
    try:
        spec = DatasetSpec.from_dict(manifest["dataset"]["spec"])
        salt = salt_as_recorded(manifest["dataset"], salt, location)
        _require_all_views(manifest["views"], location)
        views, parts = manifest["views"], manifest["fingerprint"]["parts"]
        name = teacher or str(manifest["teacher"]["name"])
        _require_no_file(teacher, name, "--teacher torchscript:FILE, onnx:FILE or adapted:RUN")
        _require_no_file(dataset, spec.name, "--dataset folder:PATH or table:FILE")
        config = ExtractConfig(
            teacher=name,
            dataset=dataset or spec.name,
            taps=tuple(tap.name for tap in layout_of(manifest, location).public),
            views=_views_option(views),
            fit=views["fit"],
            patch=views.get("patch"),
            stride=views.get("stride", 1),
            spacing=spec.spacing,
            slices=manifest["teacher"]["preprocessing"].get("slices"),
            dtype=parts["dtype"],
            pool=parts.get("pool", ()),
            project=parts.get("project", ()),
            precision=parts["precision"],
            weights=weights,
            seed=spec.seed,
            val_fraction=spec.val_fraction,
            drop_leaks=spec.drop_leaks,
            uid_salt=salt,
            device=device,
            data_dir=data_dir,
            require_signature=require_signature or required_signature(),
        )
    except (KeyError, TypeError) as error:
        raise StoreFormatError(
            "this store does not say how it was extracted.", store=location, lacks=error
        ) from None
    plan = plan_extraction(config)
    if plan.fingerprint.digest != manifest["fingerprint"]["digest"]:
        differing = plan.fingerprint.differences(fingerprint_of(manifest, location))
        raise StaleStoreError(
            "what this store was extracted from is not what it was.",
            store=location,
            differs_in=", ".join(differing),
        )
    return replace(plan, location=location)  # wherever the store has been moved to


def _require_no_file(given: str | None, recorded: str, say: str) -> None:
    """A manifest, which anyone may have written, decides neither what program is run nor what
    folder is read.
    """
    if given is None and recorded.partition(":")[0] in FILES:
        raise UsageError(
            "a store does not know where its files lie on this machine.",
            was_made_of=recorded,
            next=f"say it: {say}",
        )


def _require_all_views(views: Mapping[str, Any], location: Location) -> None:
    """Refuse a part of the fixed views, which no extraction makes."""
    if views["count"] != ViewSpec.parse(_views_option(views)).count:
        raise UsageError(
            "this store holds only some views of its kind, as `rdcache pull --views` made it.",
            store=location,
            next="pull it again, or ask the store that it is a part of",
        )


def _views_option(views: Mapping[str, Any]) -> str:
    return str(views["count"]) if views["kind"] == "random" else str(views["kind"])


def compare_with_teacher(
    store: Store, plan: ExtractionPlan, count: int, seed: int = 0
) -> list[TapAgreement]:
    """Run the teacher again over random (sample, view) pairs and compare with what is stored.

    Args:
        count: how many pairs; fewer where the store has no more.
    """
    stored = [
        (view, sample)
        for view, extent in enumerate(store.extents)
        for sample in np.flatnonzero(store.available(range(extent), view))
    ]
    chosen = np.random.default_rng(seed).permutation(len(stored))[:count]
    forward = forward_of(plan, tuple(store.taps), batch_size=1)
    errors: dict[str, list[float]] = {tap: [] for tap in store.taps}
    cosines: dict[str, list[float]] = {tap: [] for tap in store.taps}
    for view, sample in (stored[number] for number in chosen):
        now = next(forward.batches(view, [int(sample)]))
        for name, projection in store.projections.items():
            now[name] = projection.project(now[name], store.taps[name])
        then = store.read([int(sample)], view)
        for tap in store.taps:
            a, b = then[tap].double().flatten(), now[tap].double().flatten()
            norm = b.norm().clamp_min(1e-12)
            errors[tap].append(float((a - b).norm() / norm))
            cosines[tap].append(float(torch.cosine_similarity(a, b, dim=0)))
    return [
        TapAgreement(
            name, len(chosen), min(cosines[name]), max(errors[name]), _tolerance(tap.dtype, plan)
        )
        for name, tap in store.taps.items()
    ]


def mend_shards(
    plan: ExtractionPlan, problems: Iterable[Problem], on_progress: Progress = ignore
) -> Store:
    """Extract again the shards that have problems, and no other."""
    manifest = read_manifest(plan.location)
    if manifest.get("complete") is True:
        require_root(manifest, plan.location)  # or what was changed in it would get a new root
    writer = StoreWriter(plan.location, manifest)
    writer.reopen()
    broken = {problem.shard for problem in problems if problem.shard is not None}
    writer.objects.delete(sorted(receipt_object(shard) for shard in broken))
    run_extraction(plan, on_progress)
    return open_store(plan.location)


def _tolerance(dtype: str, plan: ExtractionPlan) -> float:
    if plan.config.precision == "bfloat16":
        return TOLERANCE_OF_BFLOAT16_ARITHMETIC
    return TOLERANCES[dtype]
