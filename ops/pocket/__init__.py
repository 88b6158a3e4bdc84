"""Builds the pocket model: synthetic data, tokenizer, training and evaluation.

Only `train`, `evaluate`, `model`, `decode` and `reference` need torch (see requirements.txt); the
data modules use the standard library.
"""
