"""A test runs on folded networks."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from mmlk.models.folding import folded_copy


class FoldForTest(Hook):
    """Tests a folded copy of the runner's model, which is back in its place afterwards.

    Averaging hooks exchange weights right before a test, so the copy is made last.
    """

    priority = 'LOWEST'

    def before_test_epoch(self, runner: Runner) -> None:
        """Put the copy in the place of the model."""
        self._model = runner.model
        inner = runner.model.module if is_model_wrapper(runner.model) else runner.model
        folded, reason = folded_copy(inner)
        if reason:
            runner.logger.info(f'Not folded for the test: {reason}.')
            return
        runner.model = folded
        runner.logger.info('Tested in folded form; --no-fold tests the model as it was trained.')

    def after_test_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        """Put the model back."""
        runner.model = self._model
