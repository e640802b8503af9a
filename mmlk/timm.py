"""Importing this module registers the networks with timm: ``timm.create_model('mmlk_slak_tiny')``.

Names are those of :func:`mmlk.list_models` after ``mmlk_``; ``timm.list_models('mmlk_*')`` lists
them, and tags of weights work as with timm's own models. Weights are downloaded and checked by this
package, into torch's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from timm.models import generate_default_cfgs, register_model

from mmlk.models.classifier import Classifier
from mmlk.models.create import create_model, pretrained_cfg
from mmlk.models.features import FeatureExtractor
from mmlk.models.names import VARIANTS

PREFIX = 'mmlk_'

default_cfgs = generate_default_cfgs(
    {
        f'{PREFIX}{variant.name}.{tag}': {
            key: value
            for key, value in pretrained_cfg(variant, entry).items()
            if key not in ('architecture', 'tag')
        }
        for variant in VARIANTS.values()
        for tag, entry in variant.weights.items()
    }
)


def _entry_point(name: str) -> Callable[..., Classifier | FeatureExtractor]:
    """The function that timm calls for the network ``name``."""

    def create(
        pretrained: bool = False,
        pretrained_cfg: str | Mapping | Any = None,
        pretrained_cfg_overlay: Mapping | None = None,
        cache_dir: str | None = None,
        **options: Any,
    ) -> Classifier | FeatureExtractor:
        """See :func:`mmlk.create_model`; of a configuration or overlay its file or URL is loaded.

        Raises:
            ValueError: If another cache is asked for, besides what :func:`mmlk.create_model` raises.
        """
        if cache_dir is not None:
            raise ValueError(
                f'{PREFIX}{name}: cache_dir {cache_dir!r} is not used; weights are kept below '
                f'torch.hub.get_dir(), which TORCH_HOME or torch.hub.set_dir moves'
            )
        given = asdict(pretrained_cfg) if is_dataclass(pretrained_cfg) else pretrained_cfg
        tag = given if isinstance(given, str) else (given or {}).get('tag')
        changes = {
            **(given if isinstance(given, Mapping) else {}),
            **(pretrained_cfg_overlay or {}),
        }
        source = changes.get('file') or changes.get('url') or True
        model = create_model(f'{name}.{tag}' if tag else name, pretrained and source, **options)
        model.default_cfg.update(
            {key: value for key, value in changes.items() if value is not None}
        )
        return model

    create.__name__ = create.__qualname__ = f'{PREFIX}{name}'
    create.__module__ = __name__
    return create


for _name in VARIANTS:
    globals()[f'{PREFIX}{_name}'] = register_model(_entry_point(_name))
