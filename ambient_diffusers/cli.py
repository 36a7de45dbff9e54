"""`ambient-diffusers <verb>`: one thin function a verb; what it does is in the module that the function imports."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable


def prepare(arguments: list[str]) -> None:
    """Encode and noise images once; the trainer's flags and YAML."""
    from .training import AmbientTrainer, parse_config

    config = parse_config(arguments)
    if not config.data_sources():
        raise ValueError("one of train_data_dir, dataset_name or sources must be given")
    trainer = AmbientTrainer(config)
    report = trainer.prepare_data()
    if report:
        config.save(trainer.cache_dir)
        print(f"{report}\ncache: {trainer.cache_dir}")


def sample(arguments: list[str]) -> None:
    """Draw images: single files and a grid, sharded under `accelerate launch -m ambient_diffusers.cli sample`."""
    from .processes import processes
    from .sampling import SampleConfig, sample

    folder = sample(_parse(SampleConfig, arguments))
    if processes().is_main_process:
        print(f"images: {folder / 'images'}\noverview: {folder / 'grid.png'}")


def export(arguments: list[str]) -> None:
    """Write a whole pipeline that stock diffusers loads."""
    from .export import ExportConfig, export

    folder = export(_parse(ExportConfig, arguments))
    print(f"pipeline: {folder}\nload it as {folder / 'README.md'} says")


def push(arguments: list[str]) -> None:
    """Upload a training's LoRA, picture, config and card to the Hugging Face Hub."""
    from .hub import PushConfig, push

    print(push(_parse(PushConfig, arguments)))


VERBS: dict[str, Callable[[list[str]], None]] = {
    function.__name__: function for function in (prepare, sample, export, push)
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the verb; a ValueError, which our own refusals are, is one line and exit code 2."""
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if verb in ("-h", "--help"):
        print("usage: ambient-diffusers <verb> [--config FILE.yaml] [--option VALUE ...]\n")
        print("\n".join(f"  {name:10}{function.__doc__}" for name, function in VERBS.items()))
        print("\nOptions of a verb: ambient-diffusers <verb> --help")
        return 0
    try:
        if verb not in VERBS:
            nearest = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.4)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"allowed: {', '.join(VERBS)}"
            raise ValueError(f"unknown verb {verb!r}; {hint}")
        VERBS[verb](rest)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parse(cls: type, arguments: list[str]):
    from .parsing import parse_dataclass

    return parse_dataclass(cls, arguments)


if __name__ == "__main__":
    sys.exit(main())
