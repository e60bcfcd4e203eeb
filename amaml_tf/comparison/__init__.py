"""A comparison of methods: search, runs, table and figures."""
