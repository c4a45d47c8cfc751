"""Pushes of a tiny student to the stand-in of the Hub: what arrives, what is refused, how a cut one goes on."""

import subprocess
import sys

import pytest
import torch
from hub_server import Hub
from huggingface_hub import ModelCard, snapshot_download
from tiny import open_gates

from ardistill.publishing import check_push, export, is_export_of, load, push
from ardistill.student import Student, StudentConfig

LICENSE = "apache-2.0"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    users = {"hf_me": "me", "hf_guest": ("guest", "read"), "hf_other": "other"}
    with Hub(users, organizations={"lab": ["me"]}) as hub:
        hub.point_here(monkeypatch, tmp_path / "home")
        yield hub


@pytest.fixture
def student(teacher):
    student = Student.from_teacher(teacher, StudentConfig(teacher.knots(2), 2)).eval()
    open_gates(student)
    return student


@pytest.fixture
def exported(student, teacher, tmp_path):
    export(student, teacher, tmp_path / "export", license=LICENSE)
    return tmp_path / "export"


def draw(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return torch.as_tensor(pipeline([0, 1], generator=torch.Generator().manual_seed(0), output_type="pt").images)


@pytest.mark.parametrize("xet", [False, True])
def test_a_pushed_student_comes_back_and_draws_the_same(hub, exported, tmp_path, monkeypatch, xet):
    hub.large_from = 10**9 if xet else 10_000  # without large files the way of hf_xet needs no other server
    hub.point_here(monkeypatch, tmp_path / "home", xet=xet)
    assert push(exported, "me/student") == f"{hub.url}/me/student"
    there = hub.repositories["model", "me/student"]
    local = {str(x.relative_to(exported)): x.read_bytes() for x in exported.rglob("*") if x.is_file()}
    pushed = {name: data for name, data in there.files.items() if name != ".gitattributes"}
    assert pushed.pop("README.md").decode() == local.pop("README.md").decode().replace("this/folder", "me/student")
    assert pushed == local and not there.private
    assert there.commits[1:] == ["A 2-step student of an unnamed teacher (ardistill 0.1.0)"]
    before = draw(load(exported))
    assert torch.equal(draw(load("me/student")), before)  # through the Hub
    hub.requests.clear()
    push(exported, "me/student")  # once more: nothing is uploaded and nothing committed
    assert there.commits[2:] == [] and not any(method == "PUT" for method, _ in hub.requests)


@pytest.mark.slow
def test_a_stranger_draws_with_diffusers_alone(hub, exported, tmp_path):
    push(exported, "lab/student")
    script = """
import sys
sys.modules["ardistill"] = None
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("lab/student", trust_remote_code=True)
print(pipeline([0, 1]).images[0].size)
"""
    environment = hub.environment(tmp_path / "stranger", token=None) | {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "(8, 8)"


def test_a_private_repository(hub, exported, tmp_path, monkeypatch):
    push(exported, "me/secret", private=True)
    assert hub.repositories["model", "me/secret"].private
    hub.point_here(monkeypatch, tmp_path / "other", token="hf_other")
    with pytest.raises(Exception, match="404"):
        snapshot_download("me/secret")
    hub.add("me/open", {"README.md": b"---\ntags: [ardistill]\n---\n"})
    hub.point_here(monkeypatch, tmp_path / "home")
    with pytest.raises(ValueError, match="me/open is there and public; make it private in its settings"):
        push(exported, "me/open", private=True)


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/commit/"), ("PUT", "/lfs/"), ("POST", "/preupload/"), ("POST", "/objects/batch")]
)
def test_an_interrupted_push_goes_on(hub, exported, method, path):
    hub.fails(method, path, times=100)
    with pytest.raises(ValueError, match=r"the push was interrupted .*; nothing is lost, the same command"):
        push(exported, "me/student")
    assert list(hub.repositories["model", "me/student"].files) == [".gitattributes"]  # nobody loads a half
    hub.mend()
    stored = set(hub.objects)
    hub.requests.clear()
    push(exported, "me/student")
    sent = {found.rpartition("/")[2] for kind, found in hub.requests if kind == "PUT"}
    assert not sent & stored and (path != "/commit/" or stored)  # what had arrived is not sent again
    assert len(hub.repositories["model", "me/student"].files) == sum(x.is_file() for x in exported.rglob("*")) + 1


def test_storage_that_fails_is_named(hub, exported, tmp_path, monkeypatch):
    """The stand-in has no Xet storage, which large files go to by default."""
    pytest.importorskip("hf_xet")
    hub.point_here(monkeypatch, tmp_path / "home", xet=True)
    with pytest.raises(ValueError, match=r"me/student: the push was interrupted .*; nothing is lost") as refused:
        push(exported, "me/student")
    assert "\n" not in str(refused.value)
    assert list(hub.repositories["model", "me/student"].files) == [".gitattributes"]


def test_a_newer_version_replaces_the_module_and_keeps_what_others_added(hub, exported):
    push(exported, "me/student")
    there = hub.repositories["model", "me/student"]
    there.files |= {"pipeline_00000000.py": b"old", "more/picture.png": b"mine"}
    (exported / "samples.png").write_bytes(b"another")
    push(exported, "me/student")
    assert "pipeline_00000000.py" not in there.files and there.files["more/picture.png"] == b"mine"
    assert there.files["samples.png"] == b"another"


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        ("student", "hf_me", r"expected a user or organization and a name, as in you/student"),
        ("me/a student", "hf_me", r"is no name of a repository .*; name one as you/name"),
        ("me/a/b", "hf_me", r"is no name of a repository"),
        ("me/student", None, r"expected a token of the Hub, found none; log in with: hf auth login"),
        ("me/student", "hf_wrong", r"the Hub does not accept the token .*; log in with"),
        ("me/student", "hf_two words", r"the token of the Hub has characters that no token has"),
        ("guest/student", "hf_guest", r"the token of guest may only read; log in with"),
        ("other/student", "hf_me", r"me may not write to other, only to me, lab; name me/student"),
        ("me/taken", "hf_me", r"me/taken holds something that ardistill did not write .*; choose another name"),
    ],
)
def test_what_cannot_be_pushed_to_is_refused_in_one_line(hub, tmp_path, monkeypatch, capfd, name, token, said):
    hub.add("me/taken", {"model.safetensors": b"x", "README.md": b"---\nlicense: mit\n---\nmine"})
    hub.point_here(monkeypatch, tmp_path / "home", token)
    with pytest.raises(ValueError, match=said) as refused:
        check_push(name)
    assert "\n" not in str(refused.value) and "hf_" not in str(refused.value).replace("hf auth", "")
    assert not any(method in ("PUT", "DELETE") or "create" in path for method, path in hub.requests)
    printed = "".join(capfd.readouterr())
    assert token is None or token not in printed


def test_offline_is_refused(hub, exported, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set; unset it"):
        push(exported, "me/student")
    assert hub.requests == []


def test_a_hub_that_refuses_is_named(hub, exported):
    hub.fails("POST", "/api/repos/create", status=403)
    with pytest.raises(ValueError, match="does not let this token write to me/student"):
        push(exported, "me/student")
    hub.fails("GET", "/api/whoami-v2", status=500)
    with pytest.raises(ValueError, match=r"the push was interrupted .*the same command again"):
        push(exported, "me/student")


def test_a_blank_repository_is_filled(hub, exported):
    there = hub.add("me/student", {"README.md": b"made on the page"})
    push(exported, "me/student")
    assert "model_index.json" in there.files


def test_only_an_export_with_a_licence_is_pushed(hub, student, teacher, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "README.md").write_text("---\nlicense: mit\n---\nmine")
    with pytest.raises(ValueError, match="expected a folder that export wrote"):
        push(tmp_path / "other", "me/student")
    export(student, teacher, tmp_path / "bare")
    card = (tmp_path / "bare" / "README.md").read_text()
    assert "license:" not in card and "None is named here" in card
    with pytest.raises(ValueError, match=r"expected a licence in the card of .*/bare, found none"):
        push(tmp_path / "bare", "me/student")
    with pytest.raises(ValueError, match="expected the identifier of a licence"):
        push(tmp_path / "bare", "me/student", license="My own!")
    assert hub.requests == []
    push(tmp_path / "bare", "me/student", license="mit")
    pushed = ModelCard(hub.repositories["model", "me/student"].files["README.md"].decode())
    assert pushed.data.license == "mit" and "`mit`, as chosen by its publisher" in pushed.text
    assert (tmp_path / "bare" / "README.md").read_text() == card  # the folder stays as it is
    with pytest.raises(ValueError, match='"license" must be'):
        push(tmp_path / "bare", "me/student", license="nonsense-1.0")


def test_whose_export_a_folder_is(student, teacher, exported, tmp_path):
    assert is_export_of(exported, student)
    with torch.no_grad():
        next(student.parameters()).add_(1.0)
    assert not is_export_of(exported, student) and not is_export_of(tmp_path / "nothing", student)
    assert not is_export_of(exported, Student.from_teacher(teacher, StudentConfig(teacher.knots(4), 2)))
