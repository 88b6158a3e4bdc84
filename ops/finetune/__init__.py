"""Fine-tuning with Hugging Face TRL: `python -m ops.finetune CONFIG.toml` (docs/finetune.md).

config: the file; run: checks, training, evaluation, the model's folder with its card, as a whole;
train: the one module that needs PyTorch, in an environment of its own
"""
