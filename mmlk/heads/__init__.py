"""Networks between the last map of a backbone and the class scores; they need torch alone."""

from mmlk.heads.networks import BatchNormLinearHead, Head, MlpHead, NormLinearHead, TwoBranchHead

HEADS: dict[str, type[Head]] = {
    'inceptionnext': MlpHead,
    'slak': NormLinearHead,
    'dcls_convnext': NormLinearHead,
    'recnext': TwoBranchHead,
    'replknet': BatchNormLinearHead,
    'unireplknet': NormLinearHead,
}
"""Head of each family's published classifiers."""

__all__ = [
    'HEADS',
    'BatchNormLinearHead',
    'Head',
    'MlpHead',
    'NormLinearHead',
    'TwoBranchHead',
]
