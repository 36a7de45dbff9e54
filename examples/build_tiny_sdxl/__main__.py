"""Command line of the build; see README.md in this folder."""

from .cli import main

main()
