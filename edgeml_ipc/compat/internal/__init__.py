"""Helpers that programs took from edgeml's insides."""
