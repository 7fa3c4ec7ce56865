"""What a finished policy does: certificate, pictures, ranges of its observations."""

from lr_gym.optional import check_installed

check_installed("benchmark", "matplotlib", "scipy")
