"""SDXL's parts: loading, conditioning, LoRA."""
