"""MMEngine's runner, which says in plain words which file a run cannot use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine import runner
from mmengine.runner import BaseLoop, EpochBasedTrainLoop

from mmlk.checkpoints.errors import UnusableCheckpoint
from mmlk.cli.loading import require_coverage
from mmlk.data.errors import DataError

# Of a schedule's public state, what a training moves; the rest are its settings.
_PROGRESS = {'last_step', 'verbose', 'base_values', 'best', 'num_bad_epochs', 'cooldown_counter'}

# What MMCV's LoadImageFromFile says of a file that OpenCV does not decode.
_UNDECODED = re.compile(r'failed to load image: (?P<file>.+)')


class Runner(runner.Runner):
    """MMEngine's runner with plain words about checkpoints and pictures that it cannot use.

    A resumed run keeps the schedules of its checkpoint, whatever the config says by now. Differences
    are written into the log.
    """

    def train(self) -> torch.nn.Module:
        """Train, see MMEngine.

        Raises:
            UnusableCheckpoint: If the checkpoint to start or resume from does not suit the run.
            DataError: If a picture cannot be decoded, or an epoch has no whole batch.
        """
        with self._reading_samples():
            return super().train()

    def build_train_loop(self, loop: dict | BaseLoop) -> BaseLoop:
        """The loop of the training, see MMEngine; raises DataError if an epoch has no batch."""
        built = super().build_train_loop(loop)
        loader = getattr(built, 'dataloader', None)
        if isinstance(built, EpochBasedTrainLoop) and not len(loader):
            raise DataError(
                f'train_dataloader: an epoch has no batch: {len(loader.dataset)} samples, batches of '
                f'{loader.batch_sampler.batch_size}, {self.world_size} process(es), and an '
                'incomplete batch is dropped. Set a smaller train_dataloader.batch_size, or '
                'train_dataloader.drop_last=False'
            )
        return built

    def test(self) -> dict[str, float]:
        """Test, see MMEngine; raises as :meth:`train` does."""
        with self._reading_samples():
            return super().test()

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict:
        """Load the weights of ``filename``, see MMEngine.

        Raises:
            UnusableCheckpoint: If the file cannot be read or does not fit the model.
        """
        with _naming(filename):
            return super().load_checkpoint(filename, *args, **kwargs)

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Continue from ``filename``, see MMEngine.

        Raises:
            UnusableCheckpoint: If the file cannot be read, does not fit the model (its class count
                included) or its optimizer, or holds weights alone.
        """
        asked = [_settings(each) for each in _schedules(self.param_schedulers)]
        with _naming(filename):
            require_coverage(self.model)
            try:
                super().resume(filename, *args, **kwargs)
            except KeyError as error:
                raise UnusableCheckpoint(
                    f'{filename} has no entry {error}, which resuming needs; to start a new training '
                    f'from its weights, write --cfg-options load_from={filename}'
                ) from error
        changes = [
            f'{type(schedule).__name__} {name} {value!r} (the config: {before[name]!r})'
            for schedule, before in zip(_schedules(self.param_schedulers), asked, strict=True)
            for name, value in _settings(schedule).items()
            if name in before and before[name] != value
        ]
        if changes:
            self.logger.warning(
                f'{filename}: the resumed training keeps its schedule where the config has another: '
                f'{"; ".join(changes)}. For a new schedule start a new training: '
                f'--cfg-options load_from={filename}'
            )

    @contextmanager
    def _reading_samples(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not _comes_from_data(error):
                raise
            remedy = (
                '"mmlk check-data CONFIG" reads every file of the data and lists the broken ones'
            )
            found = _UNDECODED.search(str(error))
            if found:
                raise DataError(
                    f'{found["file"]} is not a picture that can be decoded; {remedy}'
                ) from error
            self.logger.error(f'A sample of the data could not be prepared; {remedy}.')
            raise


@contextmanager
def _naming(filename: str) -> Iterator[None]:
    try:
        yield
    except UnusableCheckpoint:
        raise
    except (ValueError, RuntimeError, OSError) as error:
        raise UnusableCheckpoint(f'{filename}: {error}') from error


def _comes_from_data(error: BaseException) -> bool:
    """Whether an error was raised while torch's loader took a sample, in whatever process."""
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == torch.utils.data.dataloader.__file__:
            return True
        frame = frame.tb_next
    return False


def _schedules(built: Any) -> list[Any]:
    """All schedules of a runner in one list, whatever number of optimizers they belong to."""
    if isinstance(built, dict):
        return [schedule for group in built.values() for schedule in _schedules(group)]
    return [each for each in built or () if not isinstance(each, dict)]


def _settings(schedule: Any) -> dict[str, Any]:
    """What the config says of a schedule, and the highest value that it starts from."""
    state = schedule.state_dict()
    settings = {
        name: value
        for name, value in state.items()
        if not name.startswith('_') and name not in _PROGRESS
    }
    return {**settings, 'initial value': max(state.get('base_values') or [0])}
