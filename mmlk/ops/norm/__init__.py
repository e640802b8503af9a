"""Batch norm as a part of other operators, and layer norm in inference."""
