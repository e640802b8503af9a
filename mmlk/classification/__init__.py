"""ImageNet classification through MMPretrain; importing this needs it installed."""

from mmlk.classification.distillation import DistilledClassifier
from mmlk.classification.heads import (
    BatchNormLinearClsHead,
    MlpClsHead,
    NormLinearClsHead,
    TwoBranchClsHead,
)

__all__ = [
    'BatchNormLinearClsHead',
    'DistilledClassifier',
    'MlpClsHead',
    'NormLinearClsHead',
    'TwoBranchClsHead',
]
