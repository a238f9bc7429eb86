from __future__ import annotations

import socket
from importlib.metadata import version
from pathlib import Path

import pytest

from rlkl.commands.doctor import PROBES, Check, check_ray_address, check_versions, check_wandb, probe, show


def test_versions_are_held_against_the_ranges() -> None:
    checks = list(
        check_versions(
            [
                f"rich=={version('rich')}",
                "pydantic<2",
                "no-such-package>=1",
                'no-such-engine>=1; extra == "cpu"',
                'no-such-gym>=1; extra == "reasoning-gym"',
            ]
        )
    )
    assert [(check.name, check.status, check.blocks) for check in checks] == [
        ("rich", "ok", False),
        ("pydantic", "note", False),
        ("no-such-package", "missing", True),
    ]
    assert checks[1].detail == f"{version('pydantic')}, tested with <2"
    assert checks[2].detail == "wanted >=1"


def test_local_build_of_a_version_fits_its_range() -> None:
    (check,) = check_versions(["torch<2.14,>=2.13"])
    assert (check.name, check.status) == ("torch", "ok")


def test_probe_reports_the_last_line_of_what_happened() -> None:
    assert probe("x", "print('noise'); print('works')") == Check(name="x", status="ok", detail="works")
    broken = probe("engine vllm", "import no_such_module")
    assert broken.blocks
    assert broken.detail == "ModuleNotFoundError: No module named 'no_such_module'"
    assert "rlkl[cpu]" in broken.remedy
    assert not probe("engine hf", "import no_such_module").blocks


def test_probe_does_not_wait_for_ever() -> None:
    check = probe("x", "import time; time.sleep(60)", deadline_s=0.5)
    assert (check.status, check.detail) == ("missing", "no answer within 0.5 s")


def test_probe_of_vllm_loads_its_kernels() -> None:
    check = probe("engine vllm", PROBES["engine vllm"])
    assert check.status == "ok"
    assert check.detail.startswith("works")


def test_probe_of_the_rules_names_them() -> None:
    check = probe("update rules", PROBES["update rules"])
    assert check.status == "ok"
    assert "grpo" in check.detail.split(", ")


def test_wandb_key_is_found_in_both_places(tmp_path: Path) -> None:
    netrc = tmp_path / ".netrc"
    assert "no key" in check_wandb({}, netrc).detail
    assert "online" in check_wandb({"WANDB_API_KEY": "k"}, netrc).detail
    netrc.write_text("machine api.wandb.ai login user password k\n")
    assert "a key is there" in check_wandb({}, netrc).detail


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "http://127.0.0.1:{}", "ray://127.0.0.1:{}/"])
def test_ray_address_is_tried(form: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = form.format(server.getsockname()[1])
        assert check_ray_address(address).detail == f"{address} answers"
    assert check_ray_address(address).blocks
    assert not check_ray_address(None).blocks


def test_verdict_names_what_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    fine = Check(name="disk", status="note", detail="1.0 GiB free")
    show([fine])
    assert capsys.readouterr().out.splitlines()[-1] == "The quickstart can run here"
    show([fine, Check(name="ray", status="missing", detail="x"), Check(name="torch", status="missing", detail="x")])
    assert capsys.readouterr().out.splitlines()[-1] == "The quickstart cannot run here yet: ray, torch"
