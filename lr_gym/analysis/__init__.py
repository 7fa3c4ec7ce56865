"""What a finished policy does: certificate, pictures, ranges of its observations."""
