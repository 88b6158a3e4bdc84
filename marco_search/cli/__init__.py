"""The command line `marco`. Its modules import what is heavy only when a command runs."""

import os

# Before numpy is loaded. The engine decodes with one BLAS thread whatever is set
# (marco_search/runtime/embedded/linear.py); a pool of others would lie idle in every process.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
