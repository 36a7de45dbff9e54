"""Do the quickstart's samples look like its target photographs more than the base's do?

python benchmarks/quickstart_quality.py --run outputs/quickstart --output_dir outputs/quickstart-quality

Draws images for the captions of the target set with the base, and with the LoRA by the truncated and by the full
sampler, and measures each set's distance to the clean target crops, which no model saw. Needs the `eval` extra.
"""

import argparse
from pathlib import Path

from ambient_diffusers.data.photographs import CAPTIONS, NAME, write_photographs
from ambient_diffusers.evaluation.generate import generate
from ambient_diffusers.evaluation.quality import quality
from ambient_diffusers.finetuned import FineTunedOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("outputs/quickstart"), help="output_dir of the quickstart")
    parser.add_argument("--base", default="examples/tiny-sdxl")
    parser.add_argument("--num_images", type=int, default=120, help="of each set")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/quickstart-quality"))
    arguments = parser.parse_args()
    target = write_photographs(arguments.run / NAME)
    captions = list(CAPTIONS.values())
    models = {
        "base": FineTunedOptions(arguments.base, sampler="full"),
        "fine-tuned, truncated": FineTunedOptions(arguments.base, lora=str(arguments.run), sampler="truncated"),
        "fine-tuned, full": FineTunedOptions(arguments.base, lora=str(arguments.run), sampler="full"),
    }
    print(
        "| samples | Frechet distance (EfficientNet-Lite0) | kernel distance | precision | recall |\n|---|---|---|---|---|"
    )
    for name, model in models.items():
        folder = arguments.output_dir / name.replace(", ", "-")
        made = generate(model, folder, prompt=captions, num_images=arguments.num_images, guidance_scale=3.0)
        measures = quality(made["images"], target, folder)["measures"]
        cells = (
            f"{measures[key]['value']:.3g} ({measures[key]['low']:.3g} to {measures[key]['high']:.3g})"
            for key in ("frechet_distance", "kernel_distance", "precision", "recall")
        )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
