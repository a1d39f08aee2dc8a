"""Adapters to other frameworks, one file each; importing this package loads none of them."""
