"""Rebuild `examples/tiny-sdxl`: a Stable Diffusion XL pipeline of under 10 MB with trained weights.

Run it with `python -m examples.build_tiny_sdxl --help` from the root of the checkout.
"""
