"""Trained models in use: from a name to a model, from a picture to a prediction on disk."""

from mmlk.inference.load import load_model
from mmlk.inference.prediction import Prediction

__all__ = ['Prediction', 'load_model']
