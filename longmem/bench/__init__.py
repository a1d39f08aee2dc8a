"""What `longmem bench` and `longmem demo` run."""
