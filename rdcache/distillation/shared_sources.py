"""Images and cached taps of one store, opened once for all runs of a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rdcache.data import ImageDataset, Jitter
from rdcache.distillation.batches import BatchSource, Inputs
from rdcache.distillation.config import DistillConfig
from rdcache.distillation.residency import ReadTaps, ResidentTaps, TapSource, choose_residency
from rdcache.distillation.statistics import channel_statistics
from rdcache.distillation.student_views import seen_size, student_inputs
from rdcache.distillation.subset import EVERYTHING, Subset
from rdcache.distillation.teacher_probe import linear_probe_of
from rdcache.methods import ChannelStatistics
from rdcache.models import Student
from rdcache.store import Store

Note = Callable[[str], None]


class Sources:
    """Images and cached taps of one store, for all who train on them.

    Args:
        device: where batches go.
        on_note: told in a sentence where taps and images are kept, and why.
    """

    def __init__(
        self, store: Store, dataset: ImageDataset, device: torch.device, on_note: Note
    ) -> None:
        self.store, self.dataset, self.device = store, dataset, device
        self.on_note = on_note
        self._taps: dict[tuple[object, ...], tuple[TapSource, str]] = {}
        self._statistics: dict[tuple[str, Subset], ChannelStatistics] = {}
        self._probes: dict[tuple[str, Subset], tuple[torch.Tensor, torch.Tensor]] = {}
        self._cut: dict[tuple[object, ...], Inputs] = {}
        self._inputs: dict[tuple[object, ...], Inputs] = {}
        self._batches: dict[tuple[int, int], BatchSource] = {}

    def statistics(self, tap: str, subset: Subset = EVERYTHING) -> ChannelStatistics:
        """A tap's channels over a part of the training samples, read once for all."""
        key = (tap, subset)
        if key not in self._statistics:
            self._statistics[key] = channel_statistics(self.store, tap, subset)
        return self._statistics[key]

    def probe(self, tap: str, subset: Subset = EVERYTHING) -> tuple[torch.Tensor, torch.Tensor]:
        """A linear classifier of a tap's features, weight and bias, fitted once for all to a part
        of the training samples.
        """
        key = (tap, subset)
        if key not in self._probes:
            probe = linear_probe_of(self.store, tap, subset)
            self.on_note(
                f"teacher logits: a linear probe on {tap}, "
                f"{100 * probe.validation_accuracy:.1f} % right on validation"
            )
            self._probes[key] = probe.weight, probe.bias
        return self._probes[key]

    def taps(
        self, names: Sequence[str], config: DistillConfig, subset: Subset = EVERYTHING
    ) -> tuple[TapSource, str]:
        """Taps by name, of the views and the training samples that a config trains on, where the
        config wants them; and where that is, in a few words. Only what was asked for last is kept:
        runs that want the same come together.
        """
        views = config.views or self.store.views
        key = (frozenset(names), views, config.resident, subset)
        if key not in self._taps:
            # Those of earlier runs make room: whoever still trains on them has them.
            self._taps, self._batches = {}, {}
            residency = choose_residency(
                self.store, names, views, config.resident, self.device, subset
            )
            if names:
                self.on_note(f"taps: {residency}")
            source: TapSource = ReadTaps(self.store)
            if residency.where != "disk":
                place = self.device if residency.where == "device" else torch.device("cpu")
                source = ResidentTaps(self.store, names, views, place, subset)
            self._taps[key] = source, str(residency)
        return self._taps[key]

    def inputs(self, config: DistillConfig, student: Student) -> Inputs:
        """Images as a student wants them. Students that differ in jitter and normalisation alone
        share decoded images and cut views, but not the reading of taps (see `train_together`).
        """
        geometry = (config.image_size, config.views, config.working_scale, config.inputs_cache)
        look = (
            student.mean,
            student.std,
            Jitter(config.jitter, config.jitter) if config.jitter else None,
        )
        if geometry not in self._cut:
            self._cut[geometry] = student_inputs(
                self.dataset,
                self.store.view_parameters[: config.views],
                seen_size(self.store.manifest["views"], self.dataset, config.image_size),
                self.device,
                look,
                working_scale=config.working_scale,
                cache=config.inputs_cache,
            )
            self.on_note(f"images: {self._cut[geometry]}")
        key = (*geometry, look)
        if key not in self._inputs:
            self._inputs[key] = self._cut[geometry].for_student(*look)
        return self._inputs[key]

    def batches(self, taps: TapSource, inputs: Inputs) -> BatchSource:
        """Both in step; the same object for the same two."""
        key = (id(taps), id(inputs))
        if key not in self._batches:
            self._batches[key] = BatchSource(taps, inputs, self.device)
        return self._batches[key]
