"""Batch norm as a part of other operators. Layer norms are torch's own."""
