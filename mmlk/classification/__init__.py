"""ImageNet classification through MMPretrain; importing this needs it installed."""

from mmlk.classification.heads import MlpClsHead, NormLinearClsHead, TwoBranchClsHead

__all__ = ['MlpClsHead', 'NormLinearClsHead', 'TwoBranchClsHead']
