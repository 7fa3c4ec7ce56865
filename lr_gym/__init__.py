"""lr_gym: learn learning-rate controllers in a Gymnasium environment and deploy them as PyTorch optimizers."""
