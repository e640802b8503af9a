"""What was measured, as a table and as JSON."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

_VERSIONS = ('mmlk', 'torch', 'onnxruntime', 'openvino')


def processor(device: str) -> str:
    """Name of the processor or GPU."""
    if device != 'cpu':
        import torch

        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of what computes."""
    found = {'python': platform.python_version()}
    for name in _VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def table(report: dict[str, Any]) -> str:
    """The report as text: what was timed, then a row per form."""
    return '\n'.join(_lines(report))


def _lines(report: dict[str, Any]) -> Iterator[str]:
    height, width = report['shape']
    yield (
        f'{report["model"]}: {report["part"]}, {report["weights"]} weights, '
        f'{report["batch_size"]} x {height} x {width}, {report["rounds"]} rounds'
    )
    yield f'{report["processor"]}, {report["threads"]} threads; ' + ', '.join(
        f'{name} {version}' for name, version in report['versions'].items()
    )
    yield ''
    heads: Sequence[str] = ('p50 ms', 'p90 ms', 'images/s', 'peak MB', 'deviation')
    yield f'{"form":<13}' + ''.join(f'{head:>11}' for head in heads)
    for row in report['rows']:
        if 'note' in row:
            yield f'{row["form"]:<13}  {row["note"]}'
            continue
        yield (
            f'{row["form"]:<13}{row["p50"]:11.1f}{row["p90"]:11.1f}{row["images_per_second"]:11.1f}'
            f'{row["peak_megabytes"]:11.0f}{row["deviation"]:11.0e}'
        )


def dump(report: dict[str, Any]) -> str:
    """The report as JSON."""
    return json.dumps(report, indent=1)
