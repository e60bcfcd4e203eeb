"""Collaborative filtering: a task is a user."""
