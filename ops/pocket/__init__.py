"""Builds the pocket model: synthetic data, tokenizer, training and evaluation.

Only `train` and `evaluate` need torch (the extra finetune).
"""
