"""Predictions for images that lie anywhere, and models for other programs to make them."""
