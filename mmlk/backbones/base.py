"""What MMEngine adds to a network: ``init_cfg``, its logger, and a word on weights never loaded."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from collections import Counter
from typing import Any

from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import Tensor

from mmlk.checkpoints.classifiers import split_in_place
from mmlk.networks.base import Network
from mmlk.registry import MODELS


class Backbone(BaseModule):
    """Mixin, before a network's class, that makes it a module of MMEngine.

    Args:
        args: Arguments of the network.
        init_cfg: MMEngine initialisation; ``dict(type='Pretrained', checkpoint=path_or_url)`` accepts
            any published file of the family and raises where the trunk is not covered. Further keys
            are arguments of `mmlk.checkpoints.load_into`.
        options: Arguments of the network.
    """

    def __init__(
        self, *args: Any, init_cfg: dict | list[dict] | None = None, **options: Any
    ) -> None:
        # BaseModule's own constructor would call the network's without arguments.
        super(BaseModule, self).__init__(*args, **options)
        self._is_init = False
        self.init_cfg = copy.deepcopy(init_cfg)
        if self._pretrained():
            self.register_forward_pre_hook(_warn_of_random_weights)
            self._register_load_state_dict_pre_hook(_end_warning, with_module=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        network = next(base for base in cls.__mro__ if base.__module__.startswith('mmlk.networks.'))
        signature = inspect.signature(network)
        option = inspect.Parameter('init_cfg', inspect.Parameter.KEYWORD_ONLY, default=None)
        cls.__signature__ = signature.replace(parameters=[*signature.parameters.values(), option])
        cls.__doc__ = network.__doc__

    @staticmethod
    def find(kind: str) -> Any:
        """A part of the network that a registry of MMEngine knows, in the default scope or by prefix."""
        with MODELS.switch_scope_and_registry(None) as registry:
            return registry.get(kind)

    def _logger(self) -> logging.Logger:
        return MMLogger.get_current_instance()

    def _pretrained(self) -> list[dict]:
        """The ``Pretrained`` entries of ``init_cfg``."""
        configs = self.init_cfg if isinstance(self.init_cfg, list) else [self.init_cfg or {}]
        return [cfg for cfg in configs if cfg.get('type') == 'Pretrained']

    def init_weights(self) -> None:
        """Apply ``init_cfg``; ``Pretrained`` entries go through the loader that checks coverage."""
        pretrained = self._pretrained()
        if self.is_init or not pretrained:
            super().init_weights()
            return
        kept = self.init_cfg
        configs = kept if isinstance(kept, list) else [kept]
        self.init_cfg = [cfg for cfg in configs if cfg not in pretrained]
        super().init_weights()
        self.init_cfg = kept
        for cfg in pretrained:
            options = {
                key: value for key, value in cfg.items() if key not in ('type', 'checkpoint')
            }
            self.load_pretrained(cfg['checkpoint'], **options)

    def _checkpoint_filter(self, state_dict: dict, prefix: str, *_: Any) -> None:
        """Before a classifier loads: published names, which MMPretrain asks its backbone to map."""
        split_in_place(self.family, state_dict, prefix)

    def _dump_init_info(self) -> None:
        """One line on how many parameters were initialised how, where MMEngine writes two for each.

        Only for a backbone that is initialised by itself; a model around it writes its own.
        """
        counts = Counter(
            ' '.join(self._params_init_info[parameter]['init_info'].split())
            for parameter in self.parameters()
        )
        self._logger().info(
            f'{type(self).__name__}: '
            + '; '.join(f'{count} parameters: {how}' for how, count in counts.items())
        )


def _warn_of_random_weights(module: Network, _inputs: tuple[Tensor, ...]) -> None:
    """At the first forward pass: weights that ``init_cfg`` names have not been loaded."""
    if not module.is_init:
        warnings.warn(
            f'{type(module).__name__}: init_cfg names weights, but neither init_weights() nor '
            'load_state_dict() was called: this computes with random weights',
            stacklevel=3,
        )
    _end_warning(module)


def _end_warning(
    module: Network, _state: Any = None, _prefix: str = '', metadata: dict | None = None, *_: Any
) -> None:
    """Remove the check: it warns once, and not after a load."""
    if metadata and metadata.get('absent'):
        return
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is _warn_of_random_weights:
            del module._forward_pre_hooks[key]
