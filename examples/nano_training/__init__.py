"""The parts of `examples/train_nano.py`: tokenizer, batches, model, optimiser."""
