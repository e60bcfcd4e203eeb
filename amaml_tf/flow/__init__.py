"""The inner training run as a gradient flow, and its derivative."""
