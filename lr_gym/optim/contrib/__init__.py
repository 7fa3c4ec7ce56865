"""Four older adaptive optimizers and their parts; they need no policy."""
