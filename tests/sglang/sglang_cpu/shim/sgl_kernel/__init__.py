"""Stands in for sgl-kernel, which is not published for CPUs: the two kernels that are needed."""

import torch

__version__ = "0.0.0+cpu.standin"

_library = torch.library.Library("sgl_kernel", "FRAGMENT")
_32_BITS = 0xFFFFFFFF


def _rotate(x, bits):
    return ((x << bits) | (x >> (32 - bits))) & _32_BITS


def _round(state, block):
    """One block of MurmurHash3, 32 bits, on int64 tensors."""
    block = _rotate((block * 0xCC9E2D51) & _32_BITS, 15)
    block = (block * 0x1B873593) & _32_BITS
    return (_rotate(state ^ block, 13) * 5 + 0xE6546B64) & _32_BITS


def _murmur(seed, positions, columns):
    """Hash of (seed, position, column) for every row and column: the noise of seeded sampling."""
    seed = seed.to(torch.int64)[:, None]
    position = positions.to(torch.int64)[:, None] & _32_BITS
    column = columns.to(torch.int64)[None] & _32_BITS
    state = torch.zeros_like(seed)
    for block in (seed & _32_BITS, (seed >> 32) & _32_BITS, position, column):
        state = _round(state, block)
    state = state ^ 16  # bytes hashed
    state = ((state ^ (state >> 16)) * 0x85EBCA6B) & _32_BITS
    state = ((state ^ (state >> 13)) * 0xC2B2AE35) & _32_BITS
    return (state ^ (state >> 16)).to(torch.uint32)


_library.define("murmur_hash32_cpu(Tensor seed, Tensor positions, Tensor cols) -> Tensor")
_library.impl("murmur_hash32_cpu", _murmur, "CPU")


def assign_req_to_token_pool_cpu(rows, table, starts, ends, slots, stride):
    """table[row, start:end] = the next slots, for each request."""
    at = 0
    for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
        table[row, start:end] = slots[at : at + end - start].to(table.dtype)
        at += end - start


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **options):
        raise NotImplementedError(f"sgl_kernel.{name} has no stand-in for the CPU")

    return missing
