"""Evaluation: features of images, distances between sets of them, and the record of both."""
