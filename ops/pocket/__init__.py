"""Builds the pocket model: synthetic data, tokenizer, training and evaluation.

Only `model`, `train`, `decoder` and `evaluate` need torch (see requirements.txt).
"""
