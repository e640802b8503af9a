"""Trained models in use: from a name to a model, from a picture to a prediction on disk."""
