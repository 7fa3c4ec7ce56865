"""The benchmark: contestants in plain training loops, statistics, and the report."""
