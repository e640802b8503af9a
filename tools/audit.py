"""Compare every published row with our config of it, fact by fact.

    python tools/audit.py
    python tools/audit.py --json audit.json

The published facts and the reasons of known deviations stand in configs/metafiles/published.yml.
Parameters and optimizer groups are taken from the model that the config builds, multiply-adds from the
model zoo (mmlk flops counts them anew). Exit status: 1 if a difference has no reason, or a reason no
difference.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope

import mmlk
from mmlk.cli.config import drop_pretrained
from mmlk.cli.published import dense_rows, published_facts

WIDTHS = (
    'channels',
    'pool_scales',
    'num_convs',
    'num_shared_convs',
    'num_shared_fcs',
    'feat_channels',
    'conv_out_channels',
    'fc_out_channels',
    'out_channels',
    'num_outs',
    'dropout_ratio',
    'num_classes',
)
COUNTED = ('parameters', 'MACs')
NO_CHANGE = re.compile(r'mmlk\.CheckSample|Load|Pack')
"""Transforms that leave the pixels alone."""


class Finding(NamedTuple):
    """One fact of one row; ``verdict`` is ``same``, ``explained`` or ``unexplained``."""

    row: str
    fact: str
    published: str
    ours: str
    verdict: str
    reason: str = ''


def audit(name: str, facts: Mapping, zoo_row: Mapping) -> Iterator[tuple[str, str, str]]:
    """(fact, published value, our value) of a row, values as text; equal texts are the same.

    Args:
        name: Name of the row, which is that of its config.
        facts: What was published.
        zoo_row: Entry of the metafile, for the multiply-adds.
    """
    config = Config.fromfile(mmlk.config_path(name))
    init_default_scope(config.default_scope)
    with torch.device('meta'):
        model = MODELS.build(drop_pretrained(config.model))
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    ours = dict(describe(config), parameters=round(millions, 2), MACs=zoo_row['Metadata']['FLOPs'])
    for fact, value in facts.items():
        if fact == 'source':
            continue
        if fact == 'optimizer groups':
            yield fact, *compare_groups(value, config, model)
        elif fact in COUNTED:
            close = abs(ours[fact] - value) <= 1
            yield fact, str(value), str(value if close else ours[fact])
        else:
            yield fact, text(value), text(ours[fact])


def describe(config: Config) -> dict[str, Any]:
    """The facts that a config states, in the words of the file of published facts."""
    optimizer, model = config.optim_wrapper.optimizer, config.model
    loop, seed = config.train_cfg, config.get('randomness', {}).get('seed')
    length = f'{loop.max_iters} iterations' if 'max_iters' in loop else f'{loop.max_epochs} epochs'
    processes = config.auto_scale_lr.base_batch_size // config.train_dataloader.batch_size
    window = model.test_cfg.get('mode') == 'slide' and model.test_cfg
    betas = list(optimizer.get('betas', (0.9, 0.999)))
    return {
        'GPUs x batch': f'{processes} x {config.train_dataloader.batch_size}',
        'length': length,
        'optimizer': f'{optimizer.type}, lr {optimizer.lr:g}, betas {betas}, '
        f'weight decay {optimizer.weight_decay:g}',
        'learning rate': learning_rate(config.param_scheduler),
        'augmentations': transforms(config.train_dataloader.dataset.pipeline),
        'test transform': [
            *transforms(config.test_dataloader.dataset.pipeline),
            f'windows of {list(window.crop_size)}, stride {list(window.stride)}'
            if window
            else 'whole image',
        ],
        'multi-scale test': multi_scale(config),
        'heads': [part for module in head_settings(model) for part in [widths(module)]],
        'drop path': float(model.backbone.get('drop_path_rate', 0.0)),
        'seed': 'none' if seed is None else str(seed),
        'precision': 'float16, autocast'
        if config.optim_wrapper.type == 'AmpOptimWrapper'
        else 'float32',
    }


def text(value: Any) -> str:
    """Lists as lines, everything else as it prints."""
    return '; '.join(map(str, value)) if isinstance(value, list) else str(value)


def learning_rate(schedulers: list[dict]) -> str:
    """The curve that the schedulers draw; tests hold the schedulers against closed forms."""
    parts = []
    for each in schedulers:
        if each['type'] == 'LinearLR':
            parts.append(f'from x {each["start_factor"]:g} over {each["end"] - 1} iterations')
        elif each['type'] == 'PolyLR':
            parts.append(f'power {each["power"]} to {each["eta_min"]} at {each["end"] - 1}')
        elif each['type'] == 'MultiStepLR':
            epochs = ', '.join(map(str, each['milestones']))
            parts.append(f'x {each["gamma"]} after epochs {epochs}')
        else:
            raise ValueError(f'learning_rate: {each["type"]} is no scheduler of a published row')
    return '; '.join(parts)


def transforms(pipeline: list[dict]) -> list[str]:
    """The transforms that change pixels, as calls."""
    return [call(each) for each in pipeline if not NO_CHANGE.match(each['type'])]


def call(value: Any) -> str:
    if isinstance(value, Mapping):
        arguments = ', '.join(f'{key}={call(each)}' for key, each in value.items() if key != 'type')
        return f'{value["type"]}({arguments})'
    if isinstance(value, (list, tuple)):
        return f'[{", ".join(map(call, value))}]'
    return str(value)


def multi_scale(config: Config) -> list:
    """Ratios of the image size, or short sides, and whether each is flipped."""
    if 'tta_pipeline' not in config:
        return []
    branches = next(each for each in config.tta_pipeline if each['type'] == 'TestTimeAug')
    sizes, *others = branches['transforms']
    flips = any(each.get('prob') == 1.0 for group in others for each in group)
    if sizes[0]['type'] == 'ResizeShortestEdge':
        found = [each['scale'] for each in sizes]
    else:
        found = [each['scale'][0] / 2048 for each in sizes]
    return [*found, 'flip'] if flips else found


def head_settings(model: Mapping) -> Iterator[Mapping]:
    """Necks and heads in the order of the forward pass."""
    parts = [model.get(key) for key in ('neck', 'rpn_head', 'decode_head', 'auxiliary_head')]
    for key in ('bbox_head', 'mask_head'):
        part = (model.get('roi_head') or {}).get(key)
        parts += part if isinstance(part, list) else [part]
    return (part for part in parts if part)


def widths(module: Mapping) -> str:
    named = [f'{key}={call(module[key])}' for key in WIDTHS if key in module]
    if 'loss_decode' in module:
        named.append(f'weight={module["loss_decode"]["loss_weight"]}')
    return f'{module["type"]}: {", ".join(named)}'


def compare_groups(rule: Mapping, config: Config, model: torch.nn.Module) -> tuple[str, str]:
    """The published rule for rates and decay applied to every parameter, against the optimizer's."""
    settings = dict(config.optim_wrapper.to_dict(), type='OptimWrapper')
    optimizer = build_optim_wrapper(model, settings).optimizer
    found = {
        id(parameter): (group['lr'], group['weight_decay'] > 0)
        for group in optimizer.param_groups
        for parameter in group['params']
    }
    differing = []
    for name, parameter in model.named_parameters():
        rate, decays = found[id(parameter)]
        wanted = config.optim_wrapper.optimizer.lr * rate_scale(name, rule.get('layers'))
        exempt = bool(
            ('undecayed' in rule and re.search(rule['undecayed'], name))
            or (rule.get('one_dimensional') and parameter.ndim <= 1)
        )
        if abs(rate - wanted) > 1e-9 * wanted or decays == exempt:
            differing.append(name)
    published = call({'type': 'rule', **rule})
    if not differing:
        return published, published
    return published, f'{len(differing)} of {len(list(model.parameters()))} tensors differ'


def rate_scale(name: str, layers: list | None) -> float:
    """Factor on the rate of a parameter of a ConvNeXt-like network under the authors' names."""
    if layers is None:
        return 1.0
    kind, decay, count = layers
    place = re.match(r'backbone\.(downsample_layers|stages)\.(\d)(?:\.(\d+))?', name)
    layer = count + 1
    if place:
        part, index, block = place[1], int(place[2]), int(place[3] or 0)
        if part == 'downsample_layers':
            layer = 0 if kind == 'stage_wise' else (0, 2, 3, count)[index]
        else:
            layer = index + 1 if kind == 'stage_wise' else (1, 2, 3 + block // 3, count)[index]
    return decay ** (count + 1 - layer)


def findings(facts: Mapping, names: list[str]) -> list[Finding]:
    """Every fact of the rows, and the deviations that no longer deviate."""
    zoo, found, used = dense_rows(), [], set()
    for name in names:
        for fact, published, ours in audit(name, facts['Rows'][name], zoo[name]):
            verdict, reason = 'same', ''
            known = [
                number
                for number, each in enumerate(facts['Deviations'])
                if each['fact'] == fact and re.fullmatch(each['rows'], name)
            ]
            if published != ours:
                fits = [n for n in known if str(facts['Deviations'][n]['ours']) == ours]
                verdict = 'explained' if fits else 'unexplained'
                reason = facts['Deviations'][fits[0]]['reason'] if fits else ''
                used |= set(fits)
            found.append(Finding(name, fact, published, ours, verdict, reason))
    for number, each in enumerate(facts['Deviations']):
        rows = [name for name in names if re.fullmatch(each['rows'], name)]
        if rows and number not in used:
            found.append(
                Finding(
                    rows[0],
                    each['fact'],
                    '',
                    str(each['ours']),
                    'unexplained',
                    'no longer deviates',
                )
            )
    return found


def table(found: list[Finding]) -> str:
    """Rows with their count of equal facts, and every deviation with its reason."""
    lines = []
    for name in dict.fromkeys(each.row for each in found):
        mine = [each for each in found if each.row == name]
        same = sum(each.verdict == 'same' for each in mine)
        lines.append(f'{name}: {same} of {len(mine)} facts as published')
        lines += [
            f'  {each.fact}: {each.ours}, published {each.published}: '
            f'{each.reason if each.verdict == "explained" else each.verdict.upper()}'
            for each in mine
            if each.verdict != 'same'
        ]
    verdicts = [each.verdict for each in found]
    lines.append(
        f'{len({each.row for each in found})} rows, {verdicts.count("same")} facts the same, '
        f'{verdicts.count("explained")} explained, {verdicts.count("unexplained")} unexplained'
    )
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('rows', nargs='*', help='names of rows (default: all published)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='also write every fact as JSON')
    args = parser.parse_args(argv)
    MMLogger.get_instance(
        'audit', log_level=logging.ERROR
    )  # groups are told line by line otherwise
    facts = published_facts()
    unknown = sorted(set(args.rows) - set(facts['Rows']))
    if unknown:
        parser.error(f'{", ".join(unknown)}: not one of {", ".join(facts["Rows"])}')
    found = findings(facts, args.rows or list(facts['Rows']))
    print(table(found))
    if args.json:
        entries = [each._asdict() for each in found]
        args.json.write_text(json.dumps(dict(sources=facts['Sources'], facts=entries), indent=1))
    return int(any(each.verdict == 'unexplained' for each in found))


if __name__ == '__main__':
    sys.exit(main())
