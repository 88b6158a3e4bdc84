"""Tamper evidence, pure: canonical rows, Merkle roots, the chain, anchors, recomputation.

Nothing here reads a database: `marco_search.store.seal.seals` writes proofs when a job ends,
`marco_search.store.seal.verification` fetches what is checked here.
"""
