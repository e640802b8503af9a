"""ImageNet classification through MMPretrain; importing this needs it installed."""

from mmlk.classification.distillation import DistilledClassifier
from mmlk.classification.heads import MlpClsHead, NormLinearClsHead, TwoBranchClsHead

__all__ = ['DistilledClassifier', 'MlpClsHead', 'NormLinearClsHead', 'TwoBranchClsHead']
