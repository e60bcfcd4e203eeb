"""Comparison of methods: search, runs, table and figures."""
