#!/usr/bin/env python
"""Fine-tune SDXL with LoRA on noisy data only.

accelerate launch training_scripts/train_ambient_sdxl.py --config examples/quickstart.yaml [--any_field VALUE]
"""

import logging
import sys

from ambient_diffusers.training import AmbientTrainer, parse_config


def main() -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S", level="INFO")
    try:
        trainer = AmbientTrainer(parse_config())
    except ValueError as error:
        sys.exit(f"error: {error}")
    if trainer.config.dry_run:
        print(trainer.dry_run())
        return
    file = trainer.train()
    if trainer.accelerator.is_main_process:
        print(f"LoRA: {file}\nload it with: pipe.load_lora_weights({str(file.parent)!r})")


if __name__ == "__main__":
    main()
