"""A backbone of any package with some of its convolutions replaced, as one entry of a config."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, SupportsIndex

from mmengine.model import BaseModule, initialize
from mmengine.registry import DefaultScope

from mmlk.registry import MODELS
from mmlk.surgery import convert


class _Recipe(NamedTuple):
    """How a network is made: its config, the scope of that config, and what becomes of it."""

    network: Mapping[str, Any]
    scope: str | None
    options: Mapping[str, Any]
    carry_weights: bool
    init_cfg: dict | list[dict] | None

    def build(self) -> BaseModule:
        """The network as it was."""
        with DefaultScope.overwrite_default_scope(self.scope):
            return MODELS.build(copy.deepcopy(self.network))

    def convert(self, network: BaseModule, carry_weights: bool) -> None:
        """Convert it in place."""
        convert(network, **self.options, carry_weights=carry_weights, inplace=True)


class _ConvertedNetwork(BaseModule):
    """Mixin, before a backbone's class, of backbones that `build_converted` made; never constructed."""

    recipe: _Recipe

    def init_weights(self) -> None:
        """Take the weights of a network that was initialised by its own rules and then converted."""
        recipe = self.recipe
        if self.is_init:  # type: ignore[has-type]  # MMEngine ships no types
            return
        network = recipe.build()
        network.init_weights()
        recipe.convert(network, recipe.carry_weights)
        self.load_state_dict(network.state_dict())
        if recipe.init_cfg:
            initialize(self, recipe.init_cfg)
        self.is_init = True

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple:
        # The class is made at run time, so that a file can name the network's own one alone.
        _, _, *state = super().__reduce_ex__(protocol)
        return _empty, (type(self).__mro__[2],), *state


@functools.cache
def _converted_class(kind: type[BaseModule]) -> type[BaseModule]:
    return type(f'Converted{kind.__name__}', (_ConvertedNetwork, kind), {'__module__': __name__})


def _empty(kind: type[BaseModule]) -> BaseModule:
    """An object of the class for ``kind`` whose state follows."""
    made: Any = _converted_class(kind)
    return made.__new__(made)


@MODELS.register_module(name='Converted')
def build_converted(
    network: Mapping[str, Any],
    rules: Mapping[str, Mapping[str, Any]],
    *,
    carry_weights: bool = True,
    share_positions: bool = False,
    init_cfg: dict | list[dict] | None = None,
) -> BaseModule:
    """A backbone to which `mmlk.convert` was applied; configs name it ``type='mmlk.Converted'``.

    Names in the state dict are those of `mmlk.convert`, so checkpoints of the one fit the other. What
    ``network`` says of ``init_cfg``, frozen stages and norms holds as without a conversion:
    ``init_weights`` initialises the network as it was, or loads its weights, and then converts it.

    Args:
        network: Config of a backbone of MMSegmentation, MMDetection, MMPretrain or this package.
        rules: As for `mmlk.convert`.
        carry_weights: Whether new layers take over the weights of those that they replace;
            False initialises them as their class does, to train from scratch.
        share_positions: As for `mmlk.convert`.
        init_cfg: MMEngine initialisation of the converted network, after all that:
            ``dict(type='Pretrained', checkpoint=.., prefix='backbone.')`` for weights trained after the
            conversion.

    Returns:
        The backbone, of a class that derives from its own one.

    Raises:
        ValueError: If the network cannot be converted so, is no module of MMEngine, or is converted
            already.
    """
    scope = DefaultScope.get_current_instance()
    recipe = _Recipe(
        network=copy.deepcopy(network),
        scope=scope.scope_name if scope else None,
        options=copy.deepcopy(dict(rules=rules, share_positions=share_positions)),
        carry_weights=carry_weights,
        init_cfg=copy.deepcopy(init_cfg),
    )
    model = recipe.build()
    if not isinstance(model, BaseModule):
        raise ValueError(
            f'mmlk.Converted: network {network.get("type")!r} is no mmengine.model.BaseModule, which '
            'initialises its weights; use mmlk.convert in Python'
        )
    if isinstance(model, _ConvertedNetwork):
        raise ValueError(
            'mmlk.Converted: network is a mmlk.Converted itself; put all rules into one entry'
        )
    recipe.convert(model, carry_weights=False)
    model.recipe = recipe
    model.__class__ = _converted_class(type(model))
    return model
