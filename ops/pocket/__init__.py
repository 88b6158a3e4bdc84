"""Builds the pocket model: synthetic data, tokenizer, training and evaluation.

Only `model`, `train`, `decoder`, `evaluate` and `reference` need torch (see requirements.txt).
"""
