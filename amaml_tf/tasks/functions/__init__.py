"""Regression on functions with a known formula."""
