"""The emoji that the small model learns from: sets of drawings and their names in twelve languages.

Everything comes from the npm registry, at fixed versions whose SHA-512 is checked. The drawings are
SVG in JSON; the names are those of Unicode's CLDR, as `emojibase-data` has them.
"""

import base64
import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "de", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "ru", "zh")
HELD_OUT_STYLE = "openmoji"


@dataclass(frozen=True)
class Package:
    """One package of the registry, and what its files may be used under."""

    name: str
    version: str
    sha512: str  # base64, as the registry states it
    licence: str
    author: str

    @property
    def style(self) -> str:
        return self.name.rpartition("/")[2]


NAMES = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    "MIT",
    "Miles Johnson",
)
STYLES = (
    Package(
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
        "Google",
    ),
    Package(
        "@iconify-json/noto-v1",
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Apache-2.0",
        "Google",
    ),
    Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "CC-BY-4.0",
        "Twitter",
    ),
    Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "MIT",
        "Microsoft",
    ),
    Package(
        "@iconify-json/fxemoji",
        "1.2.2",
        "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
        "Apache-2.0",
        "Mozilla",
    ),
    Package(
        "@iconify-json/emojione",
        "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "CC-BY-4.0",
        "EmojiTwo",
    ),
    Package(
        "@iconify-json/emojione-v1",
        "1.2.3",
        "UjI2VQEXVtGlPBvQuxEizro7QCgBcJDOYwKUupquvvZ8UV4xOlvm45IU82JYWegiAWLerY79gFLMZ26U6Ms+ww==",
        "CC-BY-SA-4.0",
        "Emoji One",
    ),
    Package(
        "@iconify-json/emojione-monotone",
        "1.2.1",
        "cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA==",
        "CC-BY-4.0",
        "EmojiTwo",
    ),
    Package(
        "@iconify-json/fluent-emoji-high-contrast",
        "1.2.6",
        "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
        "MIT",
        "Microsoft",
    ),
    Package(
        "@iconify-json/streamline-emojis",
        "1.2.4",
        "iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
        "CC-BY-4.0",
        "Streamline",
    ),
    Package(
        "@iconify-json/circle-flags",
        "1.2.11",
        "vrx2btOkTQ4/P75ElEDnjXShmNTwInXuhhpIQQ6U6YUTdxfWyvm/4ijNG8FX8iWFr+sqqQRCvXpm2RfRtjVXfg==",
        "MIT",
        "HatScripts",
    ),
    Package(
        "@iconify-json/flag",
        "1.2.12",
        "B5zphOSTn54UX9v1sKsR1atuhyuXExiAkjuLQA8aeDcB68+P6oiStEDeEEVkbHgwvFvklPM2G7GhqFw6VMnXhw==",
        "MIT",
        "Panayiotis Lipiridis",
    ),
    Package(
        "@iconify-json/openmoji",
        "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        "CC-BY-SA-4.0",
        "OpenMoji",
    ),
)


@dataclass(frozen=True)
class Concept:
    """One emoji: its names by language, English tags, and the subgroup that Unicode has it in."""

    code: str
    names: dict[str, str]
    tags: tuple[str, ...]
    subgroup: str

    @property
    def is_held_out(self) -> bool:
        """A tenth of all, by their code: never trained on, in no style."""
        return hashlib.sha256(self.code.encode()).digest()[0] < 26


def fetch(package: Package, folder: Path) -> Path:
    """The files of a package, fetched unless they are there; ends where the digest is another."""
    target = folder / f"{package.style}-{package.version}"
    if target.is_dir():
        return target / "package"
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    done = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
    archive = folder / done.stdout.split()[-1]
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    if digest != package.sha512:
        raise SystemExit(f"{package.name} {package.version} is not the file that was pinned")
    with tarfile.open(archive) as files:
        files.extractall(target, filter="data")
    archive.unlink()
    return target / "package"


def concepts(folder: Path) -> dict[str, Concept]:
    """The emoji by code, without variants of gender, direction and skin, which look much alike."""
    root = fetch(NAMES, folder)
    languages = {
        language: {_code(each["hexcode"]): each for each in _json(root / language / "data.json")}
        for language in LANGUAGES
    }
    subgroups = _json(root / "meta/groups.json")["subgroups"]
    return {
        code: Concept(
            code,
            {language: names[code]["label"] for language, names in languages.items()},
            tuple(each.get("tags", ())),
            subgroups[str(each["subgroup"])].replace("-", " "),
        )
        for code, each in languages["en"].items()
        if "group" in each and not {"2640", "2642", "27a1"} & set(code.split("-"))
    }


def drawings(
    package: Package, known: dict[str, Concept], folder: Path
) -> Iterator[tuple[str, str]]:
    """The code and SVG of each known emoji that a style has a drawing of."""
    root = fetch(package, folder)
    icons = _json(root / "icons.json")
    side = icons.get("width", 16), icons.get("height", 16)
    for code, name in sorted(_names(root, icons, known, folder).items()):
        icon = icons["icons"][name]
        width, height = icon.get("width", side[0]), icon.get("height", side[1])
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" '
        head += 'xmlns:xlink="http://www.w3.org/1999/xlink">'
        yield code, f"{head}{icon['body']}</svg>"


def _names(root: Path, icons: Any, known: dict[str, Concept], folder: Path) -> dict[str, str]:
    """The name of the icon of each code; sets without a list of codes are matched by words."""
    listed = root / "chars.json"
    codes = {_code(code): name for code, name in _json(listed).items()} if listed.exists() else {}
    if not codes:
        words = _codes_by_words(known, folder)
        codes = {words[key]: name for name in icons["icons"] if (key := _key(name)) in words}
    return {code: name for code, name in codes.items() if code in known and name in icons["icons"]}


def _codes_by_words(known: dict[str, Concept], folder: Path) -> dict[str, str]:
    """Codes by their CLDR name, the name that Unicode gave them, that of Noto's icon, and a
    country's letters."""
    unicode = _json(fetch(NAMES, folder) / "meta/unicode-names.json")
    found = {_key(name): _code(code) for code, name in unicode.items() if _code(code) in known}
    found |= {_key(concept.names["en"]): code for code, concept in known.items()}
    noto = _json(fetch(STYLES[0], folder) / "chars.json")
    found |= {_key(name): _code(code) for code, name in noto.items() if _code(code) in known}
    for letters, code in ((_country(code), code) for code in known):
        found |= {letters: code, f"{letters}4x3": code} if letters else {}
    return found


def _country(code: str) -> str:
    """The two letters of a country's flag, of which its code is made; empty for other emoji."""
    letters = [int(part, 16) - 0x1F1E6 for part in code.split("-")]
    two = len(letters) == 2 and all(0 <= letter < 26 for letter in letters)
    return "".join(chr(ord("a") + letter) for letter in letters) if two else ""


def _code(hexcode: str) -> str:
    """Without the sign that only asks for a coloured picture: sets write it or not."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
