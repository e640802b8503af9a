"""Classifiers and feature extractors by name, with timm's vocabulary; they need torch alone."""
