"""Checkpoints under other names: this package's, timm's, or the authors'."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from mmlk import networks
from mmlk.checkpoints import classifiers, keymaps
from mmlk.checkpoints.fetch import sha256_of
from mmlk.checkpoints.load import Report, convert_in_place, read_checkpoint
from mmlk.cli.files import complete, write_by
from mmlk.heads import HEADS

# Entry under which a family's own scripts look for the state dict; InceptionNeXt's are timm's.
ENTRIES = dict(
    inceptionnext='state_dict',
    slak='model',
    dcls_convnext='model',
    recnext='model',
    replknet='model',
    unireplknet='model',
)
SAFETENSORS = '.safetensors'
AVERAGE_COUNTERS = ('steps', 'n_averaged')
"""What MMEngine's and torch's averages keep beside the weights, under names without a wrapper."""
PICKLED = ('.pth', '.pt', '.bin')


def convert(args: argparse.Namespace) -> None:
    """Read, map, check, write, and print the report.

    Args:
        args: Flags of ``mmlk convert``.

    Raises:
        ValueError: If the output exists or has an unknown ending, or the source does not cover a
            backbone of this package.
        RuntimeError: If the source cannot be read.
    """
    if args.output.exists():
        raise ValueError(f'{args.output} exists; choose another name or remove it')
    if args.output.suffix not in (*PICKLED, SAFETENSORS):
        raise ValueError(f'{args.output} must end in {", ".join(PICKLED)} or {SAFETENSORS}')
    state, info = read_checkpoint(
        args.source, prefer=args.prefer, sha256=args.sha256, unsafe=args.unsafe_pickle
    )
    state = {
        keymaps.bare_name(key): value for key, value in state.items() if key not in AVERAGE_COUNTERS
    }
    prefix = f'{args.prefix}.' if args.prefix and not args.prefix.endswith('.') else args.prefix
    start = keymaps.common_wrapper(state) + prefix
    state = {key[len(start) :]: value for key, value in state.items() if key.startswith(start)}
    if not state:
        raise ValueError(f'no key of {args.source} starts with {prefix!r}')
    inside, kept = keymaps.BACKBONE_PREFIX, []
    if args.to:
        family, arch, report = _to_published(state, args)
    else:
        place = inside if any(key.startswith(inside) for key in state) else ''
        family, arch, report = _map_backbone(state, place, args)
        kept = [key for key in state if not key.startswith(place)]
    report.source = str(args.source)
    report.notes[:0] = info.notes
    meta = dict(
        source=info.path.name,
        source_sha256=sha256_of(info.path),
        entry=info.container,
        family=family,
        arch=arch,
        dropped=report.dropped,
        notes=report.notes,
    )
    entry = ENTRIES[family] if args.to else 'state_dict'
    _write(args.output, {entry: _plain(state), 'meta': meta}, entry)
    print(report.summary())
    if kept:
        parts = sorted({key.split('.', 1)[0] for key in kept})
        print(f'  {len(kept)} keys of {", ".join(parts)} kept as they are')
    print(f'{args.output}: sha256 {sha256_of(args.output)}')


def _to_published(state: dict, args: argparse.Namespace) -> tuple[str, str, Report]:
    """Give ``state``, a classifier or a backbone, the names of its publisher, in place.

    Raises:
        ValueError: If it is neither, is folded, has no such form, or its head is not the family's.
    """
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    found = keymaps.describe(shapes)
    family = args.family or found.family
    if family is None:
        raise ValueError(f'{args.source} holds {found.text}; name its --family and --arch')
    tops = {key.split('.', 1)[0] for key in state}
    if 'backbone' in tops and not tops <= {'backbone', 'head'}:
        raise ValueError(
            f'{args.source} holds {", ".join(sorted(tops))}; classifiers and backbones alone have '
            f'a published form: --prefix backbone takes the backbone'
        )
    if args.to == 'timm' and family != 'inceptionnext':
        title = keymaps.family_of(family).title
        raise ValueError(f'timm has no {title}; --to authors writes the form of its authors')
    classifiers.split_in_place(family, state)
    family, arch, report = _map_backbone(state, keymaps.BACKBONE_PREFIX, args)
    norms = [
        key for key in state if keymaps.is_output_norm(key.removeprefix(keymaps.BACKBONE_PREFIX))
    ]
    for key in norms:
        del state[key]
    if norms:
        report.notes.append(
            f'{len(norms)} keys left out, which dense networks alone have: {", ".join(norms[:2])}'
        )
    report.notes.append(_check_head(family, arch, state))
    for key, name in classifiers.join_classifier(family, list(state)).items():
        state[name] = state.pop(key)
    return family, arch, report


def _check_head(family: str, arch: str, state: dict) -> str:
    """A sentence on the head in ``state`` (keys ``head.``), which must be the family's or absent."""
    prefix, kind = classifiers.HEAD_PREFIX, HEADS[family]
    found = {
        key[len(prefix) :]: tuple(value.shape)
        for key, value in state.items()
        if key.startswith(prefix)
    }
    if not found:
        return 'the file has no head: what loads the result keeps the head that it has'
    classes = found.get(f'{kind.class_layers[0]}.weight', (1,))[0]
    channels = keymaps.family_of(family).archs[arch].dims[-1]
    with torch.device('meta'):
        wanted = {k: tuple(v.shape) for k, v in kind(channels, classes).state_dict().items()}
    odd = sorted({key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)})
    if odd:
        raise ValueError(
            f'the head is not that of {keymaps.family_of(family).title} {arch}: {odd[0]} is '
            f'{found.get(odd[0], "missing")}, not {wanted.get(odd[0], "there")} ({len(odd)} in all); '
            f'a head folded by switch_to_deploy has no published form'
        )
    return f'head for {classes} classes'


def _map_backbone(state: dict, place: str, args: argparse.Namespace) -> tuple[str, str, Report]:
    """Map the backbone's keys inside ``state``, against the backbone that will load them."""
    keys = [key[len(place) :] for key in state if key.startswith(place)]
    found = keymaps.describe({key: tuple(state[place + key].shape) for key in keys})
    family, arch = args.family or found.family, args.arch or found.arch
    if family is None or arch is None:
        raise ValueError(
            f'{args.source} holds {found.text}; name its --family and --arch, or take the file before '
            f'switch_to_deploy if it was folded'
        )
    kinds = networks.FAMILIES
    if family not in kinds:
        raise ValueError(f'no backbone of family {family!r}; there are {", ".join(sorted(kinds))}')
    normed = any(keymaps.is_output_norm(key) for key in keys)
    backbone = kinds[family](arch=arch, output_norm=normed)
    report = convert_in_place(
        family, state, place, backbone.state_dict(), getattr(backbone, 'checkpoint_options', {})
    ).raise_if_uncovered()
    for key in report.unexpected:
        del state[place + key]
    return family, arch, report


def _plain(state: dict) -> dict[str, torch.Tensor]:
    """Detached tensors that own no more memory than they show; what was shared stays shared."""
    plain: dict[int, torch.Tensor] = {}
    for value in state.values():
        if id(value) not in plain:
            tensor = value.detach().contiguous()
            whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            plain[id(value)] = tensor if whole else tensor.clone()
    return {key: plain[id(value)] for key, value in state.items()}


def _write(output: Path, content: dict, entry: str) -> None:
    """Write the file, which is seen whole or not at all; safetensors hold tensors and text alone."""
    with complete(output) as partial:
        if output.suffix != SAFETENSORS:
            write_by(lambda file: torch.save(content, file), partial)
            return
        from safetensors.torch import save

        # that format refuses tensors that share memory
        tensors, seen = {}, set()
        for key, value in content[entry].items():
            tensors[key] = value.clone() if value.data_ptr() in seen else value
            seen.add(value.data_ptr())
        meta = {key: str(value) for key, value in content['meta'].items()}
        partial.write_bytes(save(tensors, meta))
