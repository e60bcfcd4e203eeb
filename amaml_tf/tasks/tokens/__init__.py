"""Few-shot classification of sequences of tokens."""
