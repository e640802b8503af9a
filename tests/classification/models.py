"""Classifiers for the tests, built as configs build them, and published files to load into them."""

from __future__ import annotations

import torch
from mmengine.registry import DefaultScope
from torch import nn

from tests.golden_weights import golden_tensor, load_golden

FAMILIES = {
    'inceptionnext': ('InceptionNeXt', 'MlpClsHead'),
    'slak': ('SLaK', 'NormLinearClsHead'),
    'dcls_convnext': ('DCLSConvNeXt', 'NormLinearClsHead'),
    'recnext': ('RecNeXt', 'TwoBranchClsHead'),
    'replknet': ('RepLKNet', 'BatchNormLinearClsHead'),
    'unireplknet': ('UniRepLKNet', 'NormLinearClsHead'),
}
_REPLKNET = dict(
    depths=(1, 1, 2, 1), dims=(16, 24, 32, 40), kernel_sizes=(15, 13, 13, 7), small_kernel_size=3
)
# recorded network -> family, arch
RECORDS = {
    'inceptionnext/atto': ('inceptionnext', 'atto'),
    'inceptionnext/tiny': ('inceptionnext', 'tiny'),
    'inceptionnext/base': ('inceptionnext', 'base'),
    'slak/slak_tiny': ('slak', 'tiny'),
    'slak/slak_tiny_k31': ('slak', 'tiny_31'),
    'slak/slak_base': ('slak', 'base'),
    'dcls_convnext/tiny': ('dcls_convnext', 'tiny'),
    'dcls_convnext/base': ('dcls_convnext', 'base'),
    **{
        f'recnext/recnext_{arch}': ('recnext', arch)
        for arch in (
            *('m0', 'm1', 'm3', 'm5', 'a0', 'a2', 'a3', 'a5', 't', 'b'),
            *('t_share_channel', 's_share_channel', 'b_share_channel'),
        )
    },
    'replknet/micro': ('replknet', _REPLKNET),
    'replknet/micro_xl': ('replknet', dict(_REPLKNET, small_kernel_size=None, mixer_ratio=1.5)),
    'unireplknet/micro': (
        'unireplknet',
        dict(depths=(1, 1, 2, 1), dims=(16, 24, 32, 40), kernel_sizes=((3,), (3,), (13, 3), (5,))),
    ),
}


def classifier(family: str, arch, num_classes: int = 1000, **head) -> nn.Module:
    """MMPretrain's ``ImageClassifier`` around a backbone of ours and the family's head."""
    from mmpretrain.registry import MODELS

    from mmlk.registry import MODELS as OURS

    backbone, kind = FAMILIES[family]
    width = OURS.get(backbone).resolve_arch(arch)['dims'][-1]
    settings = dict(
        type='ImageClassifier',
        backbone=dict(type=f'mmlk.{backbone}', arch=arch, out_indices=(3,), output_norm=False),
        head=dict(type=f'mmlk.{kind}', in_channels=width, num_classes=num_classes, **head),
    )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(settings)


def published(record: str) -> dict[str, torch.Tensor]:
    """The recorded network's deterministic weights under the authors' keys."""
    golden = load_golden(record)
    entries = {key: (shape, dtype) for key, shape, dtype, _ in golden['state_dict']}
    filled_as = {key: key for key in entries}
    if record.startswith('dcls_convnext'):
        # All blocks of a stage share their positions: those of the last one count.
        last = {key.split('.')[1]: key for key in entries if key.endswith('.P')}
        filled_as.update({key: last[key.split('.')[1]] for key in entries if key.endswith('.P')})
    state = {
        key: golden_tensor(filled_as[key], shape, getattr(torch, dtype))
        for key, (shape, dtype) in entries.items()
    }
    tweak = golden.get('weight_tweak_after_golden_fill')
    for key in state if tweak else ():
        if key.endswith(tuple(tweak['suffixes'])):
            state[key] = state[key] * tweak['scale']
    return state


def recorded_logits(record: str) -> list[tuple[list[int], dict]]:
    """(shape of the input, summary of the logits) of every recorded case."""
    golden = load_golden(record)
    return [
        (
            case.get('input_shape') or case['input']['shape'],
            case.get('logits') or case['outputs']['logits'],
        )
        for case in golden.get('cases') or golden['runs']
    ]
