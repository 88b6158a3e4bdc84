"""Seals: chains of proofs, anchors, archives and their verification."""
