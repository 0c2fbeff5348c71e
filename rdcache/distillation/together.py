"""Several students trained side by side: those that want the same batches get them from one stream,
so that tensors are read, and images are cut, once for all of them.

Each comes to the very weights that it would have come to alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch

from rdcache.distillation.batches import TrainingBatch
from rdcache.distillation.training import Trainer
from rdcache.errors import TrainingError


def train_together(
    trainers: Sequence[Trainer], on_step: Callable[[int], None]
) -> Iterator[Trainer]:
    """Train what is left of each, and yield each one that has ended an epoch.

    One that diverges is yielded too, with its `error`, and set aside; the others go on.

    Args:
        on_step: called with the number of steps that need not be done any more.
    """
    randomness = {id(trainer): OwnRandomness(trainer) for trainer in trainers}
    while pending := [each for each in trainers if not (each.done or each.error)]:
        last = min(pending, key=_how_far)
        group = [trainer for trainer in pending if _stream(trainer) == _stream(last)]
        done = sum(each.steps if each.error else each.steps_done for each in trainers)
        for trainer in group:
            with randomness[id(trainer)].resumed():
                trainer.begin_epoch()
        for number, batch in enumerate(_batches(group)):
            for trainer in group:
                with randomness[id(trainer)].resumed():
                    trainer.step(batch, number)
                done += 1
                on_step(done)
        for trainer in group:
            with suppress(TrainingError):  # the trainer keeps it
                trainer.end_epoch()
            yield trainer


def _how_far(trainer: Trainer) -> tuple[bool, int]:
    """First stages before second ones, so that those who have both catch up with the others."""
    return trainer.now.name == "student", trainer.epoch


def _stream(trainer: Trainer) -> tuple[object, ...]:
    """What decides which batches a trainer wants next. Students of unlike normalisation have
    sources, and so streams, of their own.
    """
    config = trainer.config
    order = (config.batch_size, config.views, config.shuffle, trainer.order_seed)
    images = (trainer.training.subset, trainer.method.views_each)
    return (trainer.now.name, trainer.epoch, order, images, id(trainer.source))


def _batches(group: Sequence[Trainer]) -> Iterator[TrainingBatch]:
    first = group[0]
    stage = first.now.name
    wanted = (each.method.taps if stage == "student" else each.method.branch_taps for each in group)
    taps = list(dict.fromkeys(tap for names in wanted for tap in names))
    key = (stage, first.order_seed, first.epoch)
    return first.source.training(first.picks(), taps, stage == "student", *key)


class OwnRandomness:
    """The state of PyTorch's generators as one of several trainers has left them."""

    def __init__(self, trainer: Trainer) -> None:
        self._device = trainer.source.device
        self._state = self._current()

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Go on from that state, and note where it is left."""
        torch.set_rng_state(self._state[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._state[1], self._device)
        yield
        self._state = self._current()

    def _current(self) -> tuple[torch.Tensor, ...]:
        if self._device.type == "cuda":
            return torch.get_rng_state(), torch.cuda.get_rng_state(self._device)
        return (torch.get_rng_state(),)
