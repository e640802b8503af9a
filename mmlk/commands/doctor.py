"""Say what is installed, what is missing, and what to do about it.

Nothing is changed, and nothing needs to be installed for this to run.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata as metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from mmlk import compat, mmcv_ops

# import name -> (OneDL distribution, upstream distribution, purpose)
PACKAGES = {
    'torch': (None, 'torch', 'everything'),
    'torchvision': (None, 'torchvision', 'detection'),
    'triton': (None, 'triton', 'fast operators on a GPU'),
    'llvmlite': (None, 'llvmlite', 'fast operators on a CPU'),
    'mmengine': ('onedl-mmengine', 'mmengine', 'backbones and training'),
    'mmcv': ('onedl-mmcv', 'mmcv', 'training'),
    'mmseg': ('onedl-mmsegmentation', 'mmsegmentation', 'segmentation'),
    'mmdet': ('onedl-mmdetection', 'mmdet', 'detection'),
    'mmpretrain': ('onedl-mmpretrain', 'mmpretrain', 'some heads of mmseg and mmdet'),
    'timm': (None, 'timm', 'tests only'),
    'onnx': (None, 'onnx', 'ONNX export only'),
    'onnxscript': (None, 'onnxscript', 'ONNX export only'),
    'onnxruntime': (None, 'onnxruntime', 'ONNX export and its use only'),
    'tensorboard': (None, 'tensorboard', 'TensorBoard logs only'),
}
LITE = {'mmcv': 'mmcv-lite'}  # upstream's second distribution of the same folder
# Packages that refuse the wrong version of mmcv or mmengine when they are imported.
PARTICULAR = ('mmseg', 'mmdet', 'mmpretrain')
OPTIONAL = ('triton', 'llvmlite', 'timm', 'onnx', 'onnxscript', 'onnxruntime', 'tensorboard')
# source of mmcv's operators -> what detectors get
_OPERATORS = {
    'compiled': 'compiled',
    'torchvision': 'NMS and RoIAlign of torchvision: enough for Mask and Cascade R-CNN; '
    f'{compat.COMPILE_OPERATORS} compiles all',
}


def installed(distribution: str | None) -> str | None:
    """Version of a distribution, or None."""
    try:
        return metadata.version(distribution) if distribution else None
    except metadata.PackageNotFoundError:
        return None


def attempt(question: Callable[[], object]) -> str:
    """The answer as text, or the error that asking raised."""
    try:
        return str(question())
    except Exception as error:  # whatever is broken on this machine is the answer
        return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'


def import_error(name: str) -> str | None:
    """Why a package cannot be imported, or None if it can."""
    error = attempt(lambda: importlib.import_module(name) and '')
    return f'cannot be imported: {error}' if error else None


def packages() -> Iterator[tuple[str, str, str | None]]:
    """(package, what is there, advice or None)."""
    for name, (onedl, upstream, purpose) in PACKAGES.items():
        present = importlib.util.find_spec(name) is not None
        owners = (onedl, upstream, LITE.get(name))
        found = {owner: installed(owner) for owner in owners if installed(owner)}
        text = ', '.join(f'{owner} {version}' for owner, version in found.items())
        if onedl and onedl in found:
            text += ' (OneDL)'
        elif onedl and found:
            text += ' (upstream)'
        if len(found) > 1:
            yield name, text, f'all write the folder {name}: uninstall them, then install one'
        elif present:
            broken = import_error(name) if name in PARTICULAR else None
            yield name, text or 'present, of unknown origin', broken
        elif name in OPTIONAL:
            yield name, f'absent ({purpose})', None
        else:
            yield name, 'absent', f'needed for {purpose}: pip install {onedl or upstream}'


def operators_of_mmcv() -> tuple[str, str | None]:
    """Whose operators detectors use, and whether they load."""
    answer = attempt(_load_operators)
    if answer in _OPERATORS.values():
        return answer, None
    return answer, (
        'detection needs them (segmentation does not): install the torchvision that belongs to this '
        f'torch, or compile them: {compat.COMPILE_OPERATORS}'
    )


def _load_operators() -> str:
    source = mmcv_ops.source()
    if source is None:
        raise RuntimeError('mmcv or torchvision is missing')
    importlib.import_module('mmcv._ext')
    return _OPERATORS[source]


def devices() -> Iterator[tuple[str, str, str | None]]:
    """What torch can compute on."""
    torch = importlib.import_module('torch')
    yield 'torch build', f'CUDA {torch.version.cuda or "none"}', None
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield f'GPU {index}', torch.cuda.get_device_name(index), None
    else:
        yield (
            'GPU',
            'none visible to torch',
            ('training runs on the CPU; if there is a GPU, check driver and CUDA_VISIBLE_DEVICES'),
        )
    yield 'CPU', f'{os.cpu_count()} cores, {torch.get_num_threads()} threads', None
    yield (
        'distributed',
        ', '.join(
            name
            for name in ('nccl', 'gloo')
            if getattr(torch.distributed, f'is_{name}_available')()
        )
        or 'none',
        None,
    )


def this_package() -> Iterator[tuple[str, str, str | None]]:
    """mmlk itself: version, place, configs, operators."""
    mmlk = importlib.import_module('mmlk')
    yield 'mmlk', f'{mmlk.__version__} in {Path(mmlk.__file__).parent}', None
    yield (
        'configs',
        attempt(lambda: Path(mmlk.config_path('_base_/models/upernet')).parents[2]),
        None,
    )
    yield 'operators', attempt(_operator_backends), None


def _operator_backends() -> str:
    torch = importlib.import_module('torch')
    ops = importlib.import_module('mmlk.ops')
    x, weight = torch.zeros(1, 8, 16, 16), torch.zeros(8, 1, 7, 7)
    ops.depthwise_conv2d(x, weight)
    return 'a depthwise convolution runs'


def rows() -> Iterator[tuple[str, str, str | None]]:
    """Every line of the report: subject, finding, advice."""
    supported = (3, 10) <= sys.version_info[:2] <= (3, 12)
    yield (
        'Python',
        f'{platform.python_version()} ({sys.executable})',
        (None if supported else 'versions 3.10 to 3.12 are tested'),
    )
    yield from packages()
    yield ('mmcv operators', *operators_of_mmcv())
    for section in (devices, this_package):
        try:
            yield from section()
        except Exception as error:  # see attempt
            yield section.__name__, f'{type(error).__name__}: {error}', None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no flags."""


def run(args: argparse.Namespace) -> int:
    """Print the report; returns the exit status."""
    advice = []
    for subject, finding, remedy in rows():
        print(f'{subject:16}{finding}')
        if remedy:
            advice.append(f'{subject}: {remedy}')
    print()
    print('\n'.join(['To do:', *advice]) if advice else 'Nothing is missing.')
    return 0
