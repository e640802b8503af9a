"""What each family's checkpoints look like: key names in, this package's key names out.

Everything here is a pure function of key names and shapes, so it can be checked without a tensor.
The backbones use their authors' parameter names, which leaves little to map: wrappers to strip,
classification heads to drop, a handful of historic spellings. The other half of the module names
what a file holds (family, variant, kernel sizes), because the costliest mistake is a wrong file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

Shapes = Mapping[str, tuple[int, ...]]

WRAPPERS = ('module.', '_orig_mod.', 'timm_model.', 'model.')
"""Prefixes that DDP, torch.compile, mmseg's timm adapter and trainers put before every key. They
matter where nothing of the network itself shows its place, see :func:`places`."""

BACKBONE_PREFIX = 'backbone.'
"""Prefix of the backbone in MMSegmentation, MMDetection and MMPretrain checkpoints."""

INSERTED = re.compile(r'(?:_fsdp_wrapped_module|_checkpoint_wrapped_module|_orig_mod)\.')
"""What FSDP, recomputation and torch.compile insert anywhere in a name."""

_OUTPUT_NORM = re.compile(r'norm\d\.')
_COUNTER = re.compile(r'(?:.*\.)?num_batches_tracked$')


class Layout(NamedTuple):
    """Variant as read from shapes: stage widths, blocks per stage, and what else tells it apart."""

    dims: tuple[int, ...]
    depths: tuple[int, ...]
    detail: tuple = ()


@dataclass(frozen=True)
class Family:
    """Naming of one family's checkpoints.

    Attributes:
        title: The paper's spelling, for messages.
        signature: Matches a key that only this family has.
        dropped: Matches classifier keys and leftovers that a headless backbone has no use for.
        renames: Pairs (pattern, replacement) applied in order to every key.
        archs: Layout of every published variant.
        layout: Reads the layout from mapped keys and shapes.
        detail: Words for ``Layout.detail``.
    """

    title: str
    signature: re.Pattern
    dropped: re.Pattern
    renames: tuple[tuple[re.Pattern, str], ...]
    archs: Mapping[str, Layout]
    layout: Callable[[Shapes], Layout]
    detail: Callable[[tuple], str]


class Description(NamedTuple):
    """What a set of keys holds; ``family`` and ``arch`` are None where unknown."""

    family: str | None
    arch: str | None
    layout: Layout | None
    text: str


def _depths(shapes: Shapes, block: re.Pattern) -> tuple[int, ...]:
    found: dict[int, int] = {}
    for key in shapes:
        match = block.match(key)
        if match:
            stage, index = int(match[1]), int(match[2])
            found[stage] = max(found.get(stage, 0), index + 1)
    return tuple(found.get(stage, 0) for stage in range(max(found, default=-1) + 1))


def _width(shapes: Shapes, *keys: str) -> int:
    """First dimension of the first of ``keys`` that exists, else 0."""
    return next((shapes[key][0] for key in keys if shapes.get(key)), 0)


_BLOCKS = re.compile(r'stages\.(\d)\.blocks\.(\d+)\.')
_PLAIN_BLOCKS = re.compile(r'stages\.(\d)\.(\d+)\.')


def _inceptionnext_layout(shapes: Shapes) -> Layout:
    depths = _depths(shapes, _BLOCKS)
    dims = tuple(
        _width(shapes, f'stages.{i}.blocks.0.norm.weight', f'stages.{i}.blocks.0.mlp.fc2.weight')
        for i in range(len(depths))
    )
    band = shapes.get('stages.0.blocks.0.token_mixer.dwconv_w.weight', ())
    return Layout(dims, depths, (band[-1],) if band else ())


def _convnext_dims(shapes: Shapes, stages: int) -> tuple[int, ...]:
    return tuple(
        _width(shapes, f'stages.{i}.0.norm.weight', f'stages.{i}.0.pwconv2.weight')
        for i in range(stages)
    )


def _slak_layout(shapes: Shapes) -> Layout:
    depths = _depths(shapes, _PLAIN_BLOCKS)
    kernels, small, decomposed = [], 0, True
    for i in range(len(depths)):
        strip = shapes.get(f'stages.{i}.0.large_kernel.LoRA1.conv.weight')
        dense = shapes.get(f'stages.{i}.0.large_kernel.lkb_origin.conv.weight')
        square = shapes.get(f'stages.{i}.0.large_kernel.small_conv.conv.weight')
        decomposed = decomposed and dense is None
        kernels.append((strip or dense or (0,))[-2 if strip or dense else 0])
        small = square[-1] if square else strip[-1] if strip else small
    return Layout(
        _convnext_dims(shapes, len(depths)),
        depths,
        ('decomposed' if decomposed else 'full', *kernels, small),
    )


def _slak_detail(detail: tuple) -> str:
    form, *kernels, small = detail
    words = f'kernel sizes {", ".join(map(str, kernels))} with a {small}x{small} branch'
    if not small:
        words = f'kernel sizes {", ".join(map(str, kernels))}'
    return f'{words}, {"two strips" if form == "decomposed" else "not decomposed (lkb_origin)"}'


def _dcls_layout(shapes: Shapes) -> Layout:
    depths = _depths(shapes, _PLAIN_BLOCKS)
    positions = shapes.get('stages.0.0.dwconv.P', ())
    gauss = 'stages.0.0.dwconv.SIG' in shapes
    return Layout(
        _convnext_dims(shapes, len(depths)), depths, (positions[-1] if positions else 0, gauss)
    )


def _dcls_detail(detail: tuple) -> str:
    count, sigma = detail
    return f'{count} kernel elements{" with learnable sigma" if sigma else ""}'


def _recnext_layout(shapes: Shapes) -> Layout:
    depths = _depths(shapes, _BLOCKS)
    stem = [key for key in shapes if re.fullmatch(r'stem\.stem\.\d\.conv\.weight', key)]
    first = _width(shapes, max(stem, default=''))
    dims = tuple(
        _width(
            shapes,
            f'stages.{i}.downsample.channel_mixer.2.conv.weight',
            f'stages.{i}.blocks.0.channel_mixer.2.conv.weight',
        )
        or first
        for i in range(len(depths))
    )
    if any('.rep_mixer.' in key for key in shapes):
        skips = any(
            depth > 4
            and not any(key.startswith(f'stages.{i}.blocks.4.token_mixer.') for key in shapes)
            for i, depth in enumerate(depths)
        )
        series = 'stride 8, shared channels' if skips else 'stride 8'
    elif any('.token_mixer.convs.' in key for key in shapes):
        series = 'M series (RecConv)'
    else:
        series = 'A series (RecAttn)'
    return Layout(dims, depths, (series,))


def _replknet_layout(shapes: Shapes) -> Layout:
    # Blocks with a large kernel and feed-forward blocks alternate.
    depths = tuple(blocks // 2 for blocks in _depths(shapes, _BLOCKS))
    dims, kernels, small, ratio = [], [], 0, 0.0
    for i in range(len(depths)):
        block = f'stages.{i}.blocks.0'
        dims.append(_width(shapes, f'{block}.prelkb_bn.weight'))
        large = shapes.get(f'{block}.large_kernel.lkb_origin.conv.weight', (0, 0, 0, 0))
        square = shapes.get(f'{block}.large_kernel.small_conv.conv.weight')
        kernels.append(large[-1])
        small = square[-1] if square else small
        ratio = large[0] / dims[-1] if dims[-1] else ratio
    return Layout(tuple(dims), depths, (ratio, *kernels, small))


def _replknet_detail(detail: tuple) -> str:
    ratio, *kernels, small = detail
    beside = f'a {small}x{small} kernel' if small else 'no kernel'
    return (
        f'kernel sizes {", ".join(map(str, kernels))} with {beside} beside them on {ratio:g} times '
        'the channels'
    )


def _unireplknet_layout(shapes: Shapes) -> Layout:
    depths = _depths(shapes, _PLAIN_BLOCKS)
    dims = tuple(_width(shapes, f'stages.{i}.0.se.up.weight') for i in range(len(depths)))

    def size(block: str) -> int:
        names = f'{block}.dwconv.lk_origin.weight', f'{block}.dwconv.weight'
        return next((shapes[name][-1] for name in names if shapes.get(name)), 0)

    kernels = tuple(
        tuple(size(f'stages.{i}.{j}') for j in range(depth)) for i, depth in enumerate(depths)
    )
    return Layout(dims, depths, kernels)


def _unireplknet_detail(detail: tuple) -> str:
    return f'kernel sizes {"; ".join(", ".join(map(str, sizes)) for sizes in detail)}'


_WIDTHS = (96, 192, 384, 768)
_WIDE = (128, 256, 512, 1024)
_SLAK_WIDTHS = (124, 249, 499, 998)
_T, _S = (3, 3, 9, 3), (3, 3, 27, 3)
_K51 = ('decomposed', 51, 49, 47, 13, 5)

_RECNEXT_SIZES = (
    ((40, 80, 160, 320), (2, 2, 9, 1)),
    ((48, 96, 192, 384), (3, 3, 15, 2)),
    ((56, 112, 224, 448), (3, 3, 15, 2)),
    ((64, 128, 256, 512), (3, 3, 13, 2)),
    ((64, 128, 256, 512), (5, 5, 25, 4)),
    ((80, 160, 320, 640), (7, 7, 35, 2)),
)
_RECNEXT_STRIDE8 = {
    't': ((64, 128, 256, 512), (0, 2, 8, 10)),
    's': ((128, 256, 384, 512), (0, 2, 8, 10)),
    'b': ((128, 256, 384, 512), (2, 8, 8, 12)),
}


def _recnext_archs() -> dict[str, Layout]:
    archs = {}
    for letter, series in (('m', 'M series (RecConv)'), ('a', 'A series (RecAttn)')):
        for i, (dims, depths) in enumerate(_RECNEXT_SIZES):
            archs[f'{letter}{i}'] = Layout(dims, depths, (series,))
    for name, (dims, depths) in _RECNEXT_STRIDE8.items():
        archs[name] = Layout(dims, depths, ('stride 8',))
        archs[f'{name}_share_channel'] = Layout(dims, depths, ('stride 8, shared channels',))
    return archs


_REPLKNET = (2, 2, 18, 2)


def _unireplknet_archs() -> dict[str, Layout]:
    archs = {}
    for name, width, depths, kernels in (
        ('a', 40, (2, 2, 6, 2), (13,)),
        ('f', 48, (2, 2, 6, 2), (13,)),
        ('p', 64, (2, 2, 6, 2), (13,)),
        ('n', 80, (2, 2, 8, 2), (13,)),
        ('t', 80, (3, 3, 18, 3), (13, 3)),
        ('s', 96, (3, 3, 27, 3), (13, 3, 3)),
        ('b', 128, (3, 3, 27, 3), (13, 3, 3)),
        ('l', 192, (3, 3, 27, 3), (13, 3, 3)),
        ('xl', 256, (3, 3, 27, 3), (13, 3, 3)),
    ):
        stages = zip(((3,), (13,), kernels, (13,)), depths)
        sizes = tuple(each * (depth // len(each)) for each, depth in stages)
        archs[name] = Layout(tuple(width * 2**i for i in range(4)), depths, sizes)
    return archs


FAMILIES: Mapping[str, Family] = {
    'inceptionnext': Family(
        title='InceptionNeXt',
        signature=re.compile(r'stages[._]\d\.blocks\.\d+\.token_mixer\.dwconv_'),
        dropped=re.compile(r'head\.'),
        # timm's features_only flattens the first level of names
        renames=((re.compile(r'^(stem|stages)_(\d)\.'), r'\1.\2.'),),
        archs={
            'atto': Layout((40, 80, 160, 320), (2, 2, 6, 2), (9,)),
            'tiny': Layout(_WIDTHS, _T, (11,)),
            'small': Layout(_WIDTHS, _S, (11,)),
            'base': Layout(_WIDE, _S, (11,)),
        },
        layout=_inceptionnext_layout,
        detail=lambda detail: f'band kernel {detail[0]}',
    ),
    'slak': Family(
        title='SLaK',
        signature=re.compile(r'stages\.\d\.\d+\.large_kernel\.'),
        dropped=re.compile(r'(?:norm|head)\.'),
        # the strips were called Decom1 and Decom2 for some hours of July 2022
        renames=((re.compile(r'\.Decom([12])\.'), r'.LoRA\1.'),),
        archs={
            'tiny': Layout(_SLAK_WIDTHS, _T, _K51),
            'small': Layout(_SLAK_WIDTHS, _S, _K51),
            'base': Layout((166, 332, 665, 1331), _S, _K51),
            'tiny_31': Layout(_SLAK_WIDTHS, _T, ('decomposed', 31, 29, 27, 13, 5)),
            'tiny_61': Layout(_SLAK_WIDTHS, _T, ('decomposed', 61, 59, 57, 13, 5)),
        },
        layout=_slak_layout,
        detail=_slak_detail,
    ),
    'dcls_convnext': Family(
        title='DCLS-ConvNeXt',
        signature=re.compile(r'stages\.\d\.\d+\.dwconv\.P$'),
        # DCK.*: index tensors that DCLS releases of winter 2022 kept in the state dict
        dropped=re.compile(r'(?:norm|head)\.|.*\.DCK\.'),
        renames=(),
        archs={
            'tiny': Layout(_WIDTHS, _T, (34, False)),
            'small': Layout(_WIDTHS, _S, (40, False)),
            'base': Layout(_WIDE, _S, (40, False)),
            'tiny_gauss': Layout(_WIDTHS, _T, (26, True)),
        },
        layout=_dcls_layout,
        detail=_dcls_detail,
    ),
    'recnext': Family(
        title='RecNeXt',
        signature=re.compile(r'stem\.stem\.\d\.'),
        dropped=re.compile(r'head\.'),
        renames=(),
        archs=_recnext_archs(),
        layout=_recnext_layout,
        detail=lambda detail: detail[0],
    ),
    'replknet': Family(
        title='RepLKNet',
        signature=re.compile(r'stages\.\d\.blocks\.\d+\.prelkb_bn\.'),
        dropped=re.compile(r'(?:norm|head)\.'),
        # XL's dense files have the norms of the outputs inside the stages
        renames=((re.compile(r'^stages\.(\d)\.norm\.'), r'norm\1.'),),
        archs={
            '31b': Layout(_WIDE, _REPLKNET, (1, 31, 29, 27, 13, 5)),
            '31l': Layout((192, 384, 768, 1536), _REPLKNET, (1, 31, 29, 27, 13, 5)),
            'xl': Layout((256, 512, 1024, 2048), _REPLKNET, (1.5, 27, 27, 27, 13, 0)),
        },
        layout=_replknet_layout,
        detail=_replknet_detail,
    ),
    'unireplknet': Family(
        title='UniRepLKNet',
        signature=re.compile(r'stages\.\d\.\d+\.se\.down\.'),
        dropped=re.compile(r'(?:norm|head)\.'),
        renames=(),
        archs=_unireplknet_archs(),
        layout=_unireplknet_layout,
        detail=_unireplknet_detail,
    ),
}
"""How the files of each family are recognised, and how its keys are renamed, by its name."""

_STRANGERS = (
    ('Swin Transformer', re.compile(r'relative_position_bias_table')),
    ('ResNet', re.compile(r'(?:^|\.)layer1\.0\.conv1\.')),
    ('RepViT', re.compile(r'(?:^|\.)features\.\d+\.token_mixer')),
    ('ConvNeXt', re.compile(r'stages\.\d\.(?:blocks\.)?\d+\.(?:dwconv|conv_dw|depthwise_conv)\.')),
    ('a vision transformer', re.compile(r'cls_token|patch_embed\.proj|blocks\.0\.attn\.')),
    ('MiT (SegFormer)', re.compile(r'patch_embed1\.')),
    ('PoolFormer', re.compile(r'network\.0\.0\.')),
)


def family_of(name: str) -> Family:
    """The family called ``name``.

    Raises:
        ValueError: If there is none.
    """
    if name not in FAMILIES:
        raise ValueError(f'keymaps.family_of: family {name!r} is not one of {", ".join(FAMILIES)}')
    return FAMILIES[name]


def common_wrapper(keys: Iterable[str]) -> str:
    """The wrapper prefix (possibly several, joined) that every one of ``keys`` starts with."""
    keys, wrapper = list(keys), ''
    while keys:
        found = next(
            (
                prefix
                for prefix in WRAPPERS
                if all(key.startswith(wrapper + prefix) for key in keys)
            ),
            None,
        )
        if found is None:
            break
        wrapper += found
    return wrapper


def places(family: str, keys: Iterable[str]) -> list[str]:
    """Prefixes under which networks of the family stand, such as ``''`` or ``'module.backbone.'``.

    Names inserted by wrappers (:data:`INSERTED`) do not count: they are absent from the result.
    """
    signature = re.compile(rf'(?:^|(?<=\.))(?:{family_of(family).signature.pattern})')
    found = (signature.search(bare) for bare in map(bare_name, keys))
    return sorted({match.string[: match.start()] for match in found if match})


def bare_name(key: str) -> str:
    """``key`` without what wrappers insert in the middle of names."""
    return INSERTED.sub('', key)


def place_of(family: str, keys: Iterable[str]) -> str:
    """The first of :func:`places`, or the common wrapper where no network of the family shows."""
    keys = list(keys)
    return next(iter(places(family, keys)), None) or common_wrapper(map(bare_name, keys))


def map_keys(family: str, keys: Iterable[str]) -> dict[str, str | None]:
    """Headless-backbone name of every key of an author's, timm's or wrapped checkpoint.

    Args:
        family: One of :data:`FAMILIES`.
        keys: All keys of the (sub-)network or of a model that contains it.

    Returns:
        Source key to this package's key; None for what a headless backbone drops. Keys that do not
        stand where the network stands (heads of a whole model, counters of an average) are absent.
    """
    spec, keys = family_of(family), list(keys)
    place = place_of(family, keys)
    mapped = {}
    for key in keys:
        name = bare_name(key)
        if not name.startswith(place):
            continue
        name = name[len(place) :]
        for pattern, replacement in spec.renames:
            name = pattern.sub(replacement, name)
        mapped[key] = None if spec.dropped.match(name) else name
    return mapped


def is_output_norm(key: str) -> bool:
    """Whether ``key`` belongs to a norm on a stage output, which only dense networks have."""
    return _OUTPUT_NORM.match(key) is not None


def is_counter(key: str) -> bool:
    """Whether ``key`` is a batch-norm counter, which no computation of ours reads."""
    return _COUNTER.match(key) is not None


def describe(shapes: Shapes) -> Description:
    """Recognise family and variant from names and shapes.

    Args:
        shapes: Key to shape; wrappers and prefixes may still be on.
    """
    for name, spec in FAMILIES.items():
        if places(name, shapes):
            mapping = map_keys(name, shapes)
            layout = spec.layout({new: tuple(shapes[old]) for old, new in mapping.items() if new})
            arch = next((a for a, known in spec.archs.items() if known == layout), None)
            return Description(name, arch, layout, _name(spec, arch, layout))
    for title, pattern in _STRANGERS:
        if any(pattern.search(key) for key in map(bare_name, shapes)):
            return Description(None, None, None, title)
    return Description(None, None, None, 'an unknown network')


def _name(spec: Family, arch: str | None, layout: Layout) -> str:
    if arch:
        return f'{spec.title} {arch}'
    words = f'{spec.title} of depths {layout.depths}, widths {layout.dims}'
    return f'{words}, {spec.detail(layout.detail)}' if layout.detail else words


def likely_cause(family: str, shapes: Shapes, own: Shapes) -> str:
    """A sentence on why ``shapes`` does not cover the backbone ``own``, with the remedy.

    Args:
        family: Family of the backbone.
        shapes: Key to shape of the file.
        own: Key to shape of the backbone, in the order of its ``state_dict()``.
    """
    spec, theirs, ours = family_of(family), describe(shapes), describe(own)
    if not shapes:
        return (
            "there is no key to load; a file of the backbone alone belongs in the backbone's "
            "init_cfg=dict(type='Pretrained', checkpoint=...)"
        )
    if theirs.family != family or theirs.layout is None:
        return f'the file looks like {theirs.text}, not like {spec.title}; choose another file'
    if ours.layout is None:
        return (
            f'the module does not have the parameters of {spec.title}: it has other parts, or it was '
            'folded by switch_to_deploy; take a file of its own, and load before folding'
        )
    if theirs.layout != ours.layout:
        difference = _against(spec, theirs, theirs.layout.detail, ours, ours.layout.detail)
        return f'the file holds {difference}'
    stem = stem_key(own)
    mapped = {new: tuple(shapes[old]) for old, new in map_keys(family, shapes).items() if new}
    given, wanted = mapped.get(stem, ()), tuple(own[stem])
    if len(given) == len(wanted) == 4 and given[1] != wanted[1]:
        grey = " (or 'sum', for grey images)" if wanted[1] == 1 else ''
        return (
            f'the stem of the file takes {given[1]} channels, the module {wanted[1]}; add '
            f"adapt_stem='repeat' to init_cfg{grey}, or build the backbone "
            f'with in_channels={given[1]}'
        )
    return (
        'the file is the right variant but incomplete or altered, as a folded network is; take '
        'the published one'
    )


def stem_key(own: Shapes) -> str:
    """The weight of the first convolution, which reads the image."""
    return next(key for key, shape in own.items() if len(shape) == 4)


def _against(
    spec: Family, theirs: Description, detail: tuple, ours: Description, our_detail: tuple
) -> str:
    """File against module, with the detail spelled out where it is what differs."""
    left, right = theirs.text, ours.text
    if detail != our_detail and detail:
        left += f' ({spec.detail(detail)})' if theirs.arch else ''
        right += f' ({spec.detail(our_detail)})' if ours.arch and our_detail else ''
    remedy = f"build the backbone with arch='{theirs.arch}'" if theirs.arch else 'adapt the arch'
    if 'full' in detail and 'decomposed' in our_detail:
        remedy = (
            'it is the wrong, non-decomposed model (an early SLaK-T link and the distilled '
            'ConvNeXt students are such files)'
        )
    return f'{left}; the module is {right}; {remedy} or choose another file'
