"""The licences of dependencies: `python tests/house/licences.py` lists those that do not fit.

A dependency fits if every licence that its metadata names is permissive, or a weak copyleft that
leaves programs around it alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib import metadata

PACKAGE = "amaml-tf"
FITTING = re.compile(
    r"apache|\bmit\b|bsd|psf|python software foundation|\bisc\b|zlib|unlicense|public domain|0bsd"
    r"|mozilla public license 2\.0|mpl[- ]2\.0|mit-cmu|hpnd",
    re.IGNORECASE,
)
#: Licences that the metadata leave out, and where they stand.
KNOWN = {"namex": "Apache-2.0, says its LICENSE file"}
REFUSED = re.compile(r"\b(a?gpl|gnu|sspl|proprietary|commercial)", re.IGNORECASE)


def dependencies(package: str = PACKAGE) -> dict[str, metadata.Distribution]:
    """Returns the installed distributions that a package needs at run time, by name."""
    found: dict[str, metadata.Distribution] = {}
    pending = [package]
    while pending:
        name = re.split(r"[\s;<>=!~\[(]", pending.pop(), maxsplit=1)[0]
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            found[key] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another platform, or another Python
        pending += [each for each in found[key].requires or () if "extra ==" not in each]
    return found


def licence_of(distribution: metadata.Distribution) -> str:
    """Returns what the metadata of a distribution say of its licence, in one line."""
    # Here a field's name has _ for -.
    about = {name: str(value) for name, value in distribution.metadata.json.items()}
    classifiers = [
        each.rsplit("::", 1)[-1].strip()
        for each in distribution.metadata.get_all("Classifier") or ()
        if each.startswith("License ::") and not each.endswith("OSI Approved")
    ]
    named = about.get("license_expression") or "; ".join(classifiers) or about.get("license", "")
    named = named or KNOWN.get(about["name"], "")
    return " ".join(named.split())[:100]


def unfit(package: str = PACKAGE) -> Iterator[str]:
    """Yields a line for each dependency whose licence is not known to fit."""
    for name, distribution in sorted(dependencies(package).items()):
        licence = licence_of(distribution)
        if not FITTING.search(licence) or REFUSED.search(licence):
            yield f"{name} {distribution.version}: {licence or 'no licence named'}"


if __name__ == "__main__":
    for each, found in sorted(dependencies().items()):
        print(f"{each:32} {found.version:12} {licence_of(found)}")
    lines = list(unfit())
    print("\nNot known to fit:" if lines else "\nAll fit.", *lines, sep="\n")
    sys.exit(bool(lines))
