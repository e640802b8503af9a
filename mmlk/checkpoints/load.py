"""Loading weights loudly: read, map, compare, report, and raise before anything is touched.

Two roads lead here and share :func:`plan`. :func:`load_into` takes a file or URL to a backbone.
:func:`convert_in_place` serves a load_state_dict pre-hook, so that MMEngine's own ``load_from``,
``--resume`` and ``init_model`` meet the same mapping and the same checks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from os import PathLike

import torch
from torch import Tensor, nn

from mmlk.checkpoints import keymaps
from mmlk.checkpoints.read import read_checkpoint
from mmlk.checkpoints.report import Report
from mmlk.checkpoints.transforms import adapt_channels, transform

__all__ = ['Report', 'convert_in_place', 'load_into', 'load_state', 'plan', 'read_checkpoint']

State = Mapping[str, Tensor]


def plan(family: str, source_state: State, own_state: State, prefix: str = '') -> Report:
    """Compare a foreign state dict with a backbone's own keys and shapes; change nothing.

    Args:
        family: Name in :data:`mmlk.checkpoints.keymaps.FAMILIES`.
        source_state: Any published form: classifier or dense, timm's, wrapped or not.
        own_state: The backbone's ``state_dict()``.
        prefix: Only keys that start with it are looked at, such as ``'backbone.'``.

    Raises:
        ValueError: If the family is unknown. An uncovered trunk is for the report to raise.
    """
    spec = keymaps.family_of(family)
    source = _below(source_state, prefix)
    mapping = _mapping(family, source, own_state)
    report = Report(spec.title, own_count=len(own_state))
    found = keymaps.places(family, source)
    if len(found) > 1 and '' not in found:
        report.problems.append(
            f'there are {len(found)} such networks in it, under {", ".join(found)}: pass '
            f'prefix={found[0]!r} or another of these'
        )
    trunk = {key.split('.', 1)[0] for key in own_state if not keymaps.is_output_norm(key)}
    for old, new in mapping.items():
        if new is None:
            report.dropped.append(old)
        elif new not in own_state:
            _place_unknown(report, old, new, new.split('.', 1)[0] in trunk)
        elif source[old].shape != own_state[new].shape:
            report.mismatched.append((new, tuple(source[old].shape), tuple(own_state[new].shape)))
        else:
            report.matched[new] = old
    settled = {*report.matched, *(key for key, _, _ in report.mismatched)}
    for key in own_state:
        if key not in settled:
            optional = keymaps.is_output_norm(key) or keymaps.is_counter(key)
            (report.fresh if optional else report.missing).append(key)
    _note_wrapping(report, family, source, mapping)
    if not report.covered and not report.problems:
        report.cause = keymaps.likely_cause(family, _shapes(source), _shapes(own_state))
    return report


def convert_in_place(
    family: str,
    state_dict: MutableMapping[str, Tensor],
    prefix: str,
    own_state: State,
    options: Mapping | None = None,
) -> Report:
    """Give the keys under ``prefix`` this package's names, and drop what a backbone does not have.

    Meant for a load_state_dict pre-hook. A dict that already has the backbone's keys and shapes
    passes unchanged; attributes such as ``_metadata`` stay. Where the report is not covered, the
    dict is left as it came, and the caller raises through
    :meth:`~mmlk.checkpoints.report.Report.raise_if_uncovered`.

    Args:
        family: Name in :data:`mmlk.checkpoints.keymaps.FAMILIES`.
        state_dict: Dict to change; keys outside ``prefix`` are not looked at.
        prefix: The backbone's place in the loaded module, ``''`` for itself.
        own_state: The backbone's ``state_dict()``.
        options: What value transformations need to know, see :func:`load_into`.
    """
    report = plan(family, state_dict, own_state, prefix)
    if not report.covered:
        return report
    values = {new: state_dict[prefix + old] for new, old in report.matched.items()}
    values = transform(family, values, own_state, options or {}, report)
    if not report.covered:
        return report
    for key in [*report.dropped, *report.matched.values()]:
        if key not in values:
            del state_dict[prefix + key]
    for key, value in values.items():
        if state_dict.get(prefix + key) is not value:
            state_dict[prefix + key] = value
    return report


def load_into(
    module: nn.Module,
    family: str,
    source: str | PathLike,
    *,
    prefix: str | None = '',
    prefer: str | None = None,
    adapt_stem: str | None = None,
    sha256: str | None = None,
    unsafe: bool = False,
    map_location: str | torch.device | None = None,
    logger: logging.Logger | None = None,
) -> Report:
    """Load a published file into a backbone: all of it, or nothing and an error.

    ``module.checkpoint_options``, where there is one, is a mapping with what value transformations
    need to know: ``window``, the edge of a DCLS kernel, bounds its positions.

    Args:
        module: The backbone.
        family: Name in :data:`mmlk.checkpoints.keymaps.FAMILIES`.
        source: Path, URL, or ``mmlk://<name>`` of :mod:`mmlk.checkpoints.zoo`.
        prefix: Part of the file to take, such as ``'backbone'``. Only needed where the file holds
            several networks of the family: one is found wherever it stands.
        prefer: Which of several state dicts in the file to take, such as ``'model_ema'``.
        adapt_stem: How to make the first convolution fit another number of image channels, see
            :func:`~mmlk.checkpoints.transforms.adapt_channels`; by default it is refused.
        sha256: Expected checksum of the file, or its first characters.
        unsafe: Let the file run code while it is read. Only for files you trust.
        map_location: Accepted as MMEngine's ``Pretrained`` does; weights end where the module is.
        logger: Receives the report; the ``mmlk`` logger if None.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If the file cannot be read as a checkpoint.
        ValueError: If it does not cover the trunk. The module is untouched then.
    """
    content, info = read_checkpoint(
        source, prefer=prefer, sha256=sha256, unsafe=unsafe, map_location=map_location or 'cpu'
    )
    return load_state(
        module,
        family,
        content,
        str(source),
        prefix=prefix,
        adapt_stem=adapt_stem,
        notes=info.notes,
        logger=logger,
    )


def load_state(
    module: nn.Module,
    family: str,
    content: State,
    source: str,
    *,
    prefix: str | None = '',
    adapt_stem: str | None = None,
    notes: Sequence[str] = (),
    logger: logging.Logger | None = None,
) -> Report:
    """What :func:`load_into` does, with a state dict that has been read.

    Args:
        module: The backbone.
        family: Name in :data:`mmlk.checkpoints.keymaps.FAMILIES`.
        content: Key to tensor.
        source: Where it came from, for messages.
        prefix: Part of ``content`` to take.
        adapt_stem: As in :func:`load_into`.
        notes: What reading it had to say.
        logger: Receives the report; the ``mmlk`` logger if None.

    Returns:
        The report.

    Raises:
        ValueError: If it does not cover the trunk. The module is untouched then.
    """
    own = module.state_dict()
    tops = sorted({key.split('.', 1)[0] for key in content})
    prefix = f'{prefix}.' if prefix and not prefix.endswith('.') else prefix or ''
    state = _below(content, _prefix_in_file(content, prefix))
    if not state:
        raise ValueError(
            f'load_into: no key of {source} starts with {prefix!r}; its keys start '
            f'with {", ".join(tops[:12])}'
        )
    notes = list(notes)
    if adapt_stem is not None:
        state = _with_stem(state, family, own, adapt_stem, notes)
    report = plan(family, state, own)
    report.source = source
    report.notes[:0] = notes
    if getattr(module, 'deployed', False):
        report.cause = 'the backbone was folded by switch_to_deploy; load before folding'
    report.raise_if_uncovered()
    state = {new: state[old] for new, old in report.matched.items()}
    state = transform(family, state, own, getattr(module, 'checkpoint_options', {}), report)
    broken = [
        key
        for key, value in state.items()
        if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        report.problems.append(
            f'NaN or infinite values in {", ".join(broken[:3])}; the file comes '
            'from a diverged run or is damaged'
        )
    report.raise_if_uncovered()
    module.load_state_dict(state, strict=False)
    (logger or logging.getLogger('mmlk')).info(report.summary())
    return report


def _prefix_in_file(state: State, prefix: str) -> str:
    """``prefix`` as the file has it: a wrapper's prefix may come before."""
    if prefix and not any(key.startswith(prefix) for key in state):
        return keymaps.common_wrapper(state) + prefix
    return prefix


def _with_stem(state: State, family: str, own: State, how: str, notes: list[str]) -> State:
    """``state`` with the first convolution made to fit the module's image channels."""
    stem = keymaps.stem_key(_shapes(own))
    old = next((old for old, new in _mapping(family, state, own).items() if new == stem), None)
    if old is None or state[old].ndim != 4:
        return state  # for the report to name
    weight, channels = state[old], own[stem].shape[1]
    adapted = adapt_channels(weight, channels, how)
    if adapted is not weight:
        notes.append(f'stem adapted from {weight.shape[1]} to {channels} channels ({how})')
    return {**state, old: adapted}


def _below(state: State, prefix: str) -> State:
    """The part of ``state`` under ``prefix``, without it."""
    if not prefix:
        return state
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _mapping(family: str, source: State, own: State) -> dict[str, str | None]:
    """Source key to own key; a key that the backbone itself has is never renamed or dropped."""
    if source.keys() <= own.keys():
        return {key: key for key in source}
    mapped = keymaps.map_keys(family, source)
    return {old: old if old in own else new for old, new in mapped.items()}


def _place_unknown(report: Report, old: str, new: str, in_trunk: bool) -> None:
    """File a source key that the backbone does not have."""
    if keymaps.is_output_norm(new) or keymaps.is_counter(new):
        report.dropped.append(old)
    else:
        (report.extra if in_trunk else report.unexpected).append(old)


def _note_wrapping(report: Report, family: str, source: State, mapping: Mapping) -> None:
    place = keymaps.place_of(family, source)
    if place:
        report.notes.append(f'prefix {place!r} removed')
    inserted = {name for key in source for name in keymaps.INSERTED.findall(key)}
    if inserted:
        report.notes.append(f'{", ".join(sorted(inserted))} removed from names')
    renamed = [
        f'{old} -> {new}'
        for new, old in report.matched.items()
        if keymaps.bare_name(old).removeprefix(place) != new
    ]
    if renamed:
        report.notes.append(f'{len(renamed)} keys renamed, such as {renamed[0]}')
    elsewhere = [key for key in source if key not in mapping]
    if elsewhere:
        tops = dict.fromkeys(key.removeprefix('module.').split('.', 1)[0] for key in elsewhere)
        report.notes.append(f'{len(elsewhere)} keys of other parts left: {", ".join(tops)}')


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}
