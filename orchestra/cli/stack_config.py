"""`orchestra config`: check the compose files and print what they mean."""

from __future__ import annotations

import argparse
import json

from orchestra.cli import project


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="only check")
    parser.add_argument("--format", choices=("yaml", "json"), default="yaml")
    parser.add_argument("--services", action="store_true", help="print the service names")
    parser.add_argument("--volumes", action="store_true", help="print the volume names")
    parser.add_argument("--networks", action="store_true", help="print the network names")
    parser.add_argument("--images", action="store_true", help="print the image names")


def run(args: argparse.Namespace) -> int:
    loaded = project.load(args)
    stack = loaded.stack
    listings = {
        "services": sorted(stack.services),
        "volumes": sorted(stack.volumes),
        "networks": sorted(stack.networks),
        "images": sorted({s.image for s in stack.services.values()}),
    }
    if args.quiet:
        return 0
    for key, names in listings.items():
        if getattr(args, key):
            print("\n".join(names))
            return 0
    from orchestra.compose.render import render

    document = render(stack, loaded.origins)
    if args.format == "json":
        print(json.dumps(document, indent=2))
    else:
        import yaml

        print(yaml.safe_dump(document, sort_keys=False), end="")
    return 0
