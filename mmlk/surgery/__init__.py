"""Operators of this package in networks of other people.

`convert` puts another operator in the place of convolutions and carries their weights over;
`accelerate` computes the same network with faster code, until `restore`. Both work with torch alone, on
any ``nn.Module``.
"""

from mmlk.surgery.acceleration import (
    AcceleratedConv2d,
    Acceleration,
    Considered,
    accelerate,
    restore,
)
from mmlk.surgery.conversion import Conversion, Converted, convert

__all__ = [
    'AcceleratedConv2d',
    'Acceleration',
    'Considered',
    'Conversion',
    'Converted',
    'accelerate',
    'convert',
    'restore',
]
