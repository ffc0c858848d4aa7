"""Small Flax NNX models to train with and without clipping."""
