"""Data sets for training: made from stored trees and files, filtered, mixed, traced back."""

NEAR_DUPLICATE = 0.8
"""From this share of common shingles on, two texts are near duplicates (see `duplicates`)."""
