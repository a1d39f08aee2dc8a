"""Tensor operations, one folder each: a naive version that reads like the paper, and the fast one."""
