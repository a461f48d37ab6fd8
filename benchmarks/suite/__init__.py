"""The parts of the CPU benchmark; `python benchmarks/cpu.py` runs them."""
