"""Data sets for training: made from stored trees and files, filtered, mixed, traced back."""
