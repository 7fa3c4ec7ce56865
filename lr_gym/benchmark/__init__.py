"""The benchmark: contestants in plain training loops, statistics, and the report."""

from lr_gym.optional import check_installed

check_installed("benchmark", "jinja2", "matplotlib", "plotly", "rich", "scipy")
