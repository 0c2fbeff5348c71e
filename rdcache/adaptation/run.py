"""A finished adaptation: its folder, and what lies in it.

config.yaml         the resolved options, the teacher, and the seed
metrics.jsonl       one line of numbers an epoch
delta.safetensors   what was learned by the selected epoch: adapter and classifier, or all there is
predictions.csv     its probabilities on the test images
result.json         metrics, counts, environment; written last
checkpoint.safetensors   only while the run is not finished
diverged.json       in place of a delta, predictions and a result: how training diverged
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rdcache.distillation.run import CHECKPOINT, CONFIG, HISTORY, PREDICTIONS, RESULT, FinishedRun
from rdcache.models import Teacher, load_teacher
from rdcache.models.adapters import FILE

FILES = (RESULT, CONFIG, HISTORY, FILE, PREDICTIONS, CHECKPOINT)


@dataclass(frozen=True, repr=False)
class AdaptRun(FinishedRun):
    """One teacher, adapted with one seed."""

    @property
    def teacher_name(self) -> str:
        """What to give to `rdcache extract --teacher` on this machine."""
        return f"adapted:{self.path}"

    def load_teacher(
        self,
        weights: str | Path | None = None,
        data_dir: Path | None = None,
        device: str = "cpu",
    ) -> Teacher:
        """The adapted teacher, frozen.

        Args:
            weights: of the teacher that was adapted, see `rdcache.models.load_teacher`.
        """
        return load_teacher(self.teacher_name, weights, data_dir, device)
