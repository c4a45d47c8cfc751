"""The Dockerfile and the devcontainer name what exists; scripts/check_docker.sh lints and installs what they say."""

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.M)).splitlines()
"""One line each."""


def test_the_image_has_the_locked_versions():
    uv = re.search(r"^UV_VERSION := (.+)$", (ROOT / "Makefile").read_text(), re.M)[1]
    assert f"uv=={uv}" in DOCKERFILE
    installs = [x for x in INSTRUCTIONS if "uv pip install" in x]
    assert len(installs) == 2 and "--constraint /src/requirements.lock" in installs[0] and "--no-deps" in installs[1]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"--extra (\w+)", installs[0])) <= extras.keys()


def test_what_is_mounted_is_sent_to_the_build():
    sent = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M))
    assert sent >= set(re.findall(r"source=([\w.]+)", DOCKERFILE)) and all((ROOT / x).exists() for x in sent)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {project["project"]["readme"], *project["project"]["license-files"], "src"} <= sent


def test_nobody_is_root_and_the_base_has_a_version():
    users = [x.split()[1] for x in INSTRUCTIONS if x.startswith("USER")]
    assert users and not users[-1].startswith(("0", "root"))
    bases = [x.split()[1] for x in INSTRUCTIONS if x.startswith("FROM")]
    assert all(re.search(r":\d+\.\d+\.\d+-base-", x) for x in bases)
    assert json.loads(next(x for x in INSTRUCTIONS if x.startswith("ENTRYPOINT")).split(maxsplit=1)[1]) == ["ardistill"]


def test_the_devcontainer_sets_up_as_contributing_says():
    settings = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    target = settings["postCreateCommand"].removeprefix("make ")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
    version = re.search(r"python:(\d+\.\d+)", settings["image"])[1]
    assert f">={version}" in (ROOT / "pyproject.toml").read_text()
