"""Builds the pocket model: synthetic data, tokenizer, training and evaluation.

Only `train` and `reference` need torch (the extra finetune).
"""
