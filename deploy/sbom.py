#!/usr/bin/env python3
"""What is in the binary, as CycloneDX 1.5 JSON on standard output: every crate that is compiled into it, with licence, checksum and
what it depends on. From `cargo metadata` and Cargo.lock alone, so the same commit gives the same list.

    python3 deploy/sbom.py [--features hub,otel] [--target x86_64-unknown-linux-gnu] > pointsman.cdx.json
"""

import argparse
import json
import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description="the bill of materials of pointsman")
    parser.add_argument("--features", default="", help="as for cargo build")
    parser.add_argument("--target", default="x86_64-unknown-linux-gnu")
    options = parser.parse_args()
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", options.target]
    if options.features:
        command += ["--features", options.features]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(entry["name"], entry["version"]): entry.get("checksum") for entry in lock["package"]}
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}

    def shipped(node: dict) -> list[str]:
        """Dependencies that are compiled in: not those of tests and build scripts, nor macros."""
        normal = (dep for dep in node["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"]))
        return sorted(dep["pkg"] for dep in normal if not is_macro(packages[dep["pkg"]]))

    root, seen, waiting = metadata["resolve"]["root"], set(), [metadata["resolve"]["root"]]
    while waiting:
        package = waiting.pop()
        if package not in seen:
            seen.add(package)
            waiting += shipped(nodes[package])
    crates = sorted(seen - {root}, key=lambda package: (packages[package]["name"], packages[package]["version"]))
    print(json.dumps({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": component(packages[root], None, "application"),
            "properties": [{"name": "cargo:features", "value": options.features}, {"name": "cargo:target", "value": options.target}],
        },
        "components": [component(packages[p], checksums[packages[p]["name"], packages[p]["version"]], "library") for p in crates],
        "dependencies": [
            {"ref": purl(packages[p]), "dependsOn": [purl(packages[dep]) for dep in shipped(nodes[p])]} for p in [root, *crates]
        ],
    }, indent=2))


def is_macro(package: dict) -> bool:
    return any("proc-macro" in target["kind"] for target in package["targets"])


def purl(package: dict) -> str:
    return f"pkg:cargo/{package['name']}@{package['version']}"


def component(package: dict, checksum: str | None, kind: str) -> dict:
    found = {"type": kind, "name": package["name"], "version": package["version"], "purl": purl(package), "bom-ref": purl(package)}
    if package["license"]:
        # Old crates write a stroke for OR.
        found["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
    if checksum:
        found["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    return found


if __name__ == "__main__":
    main()
