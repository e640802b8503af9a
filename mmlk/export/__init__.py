"""Trained networks as files of standard operators, for programs that have neither mmlk nor torch."""

from mmlk.export.compare import TOLERANCE
from mmlk.export.write import export_model

__all__ = ['TOLERANCE', 'export_model']
