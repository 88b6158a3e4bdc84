"""Fine-tuning with PyTorch on tiny models: make test-finetune."""
