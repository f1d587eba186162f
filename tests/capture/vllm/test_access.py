"""Who may switch a recording over HTTP, and where it may write."""

from __future__ import annotations

from pathlib import Path

import pytest

from moeprof.capture.vllm.endpoint_access import FORWARDING, Access, Caller, RefusedError

LOCAL = {"host": "localhost:8000"}


def caller(peer: str | None = "127.0.0.1", **headers: str) -> Caller:
    return Caller(peer, LOCAL | {name.replace("_", "-"): value for name, value in headers.items()})


def refused(access: Access, who: Caller) -> str:
    with pytest.raises(RefusedError) as caught:
        access.admit(who)
    assert caught.value.status == 403
    return str(caught.value)


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:80", "[::1]:8000"])
def test_programs_on_this_machine_need_no_token(peer: str, host: str) -> None:
    Access().admit(Caller(peer, {"host": host}))


@pytest.mark.parametrize("peer", ["10.0.0.2", "172.17.0.1", "::ffff:10.0.0.2", "0.0.0.0", "", None])
def test_other_machines_do(peer: str | None) -> None:
    assert "MOEPROF_TOKEN" in refused(Access(), caller(peer))


@pytest.mark.parametrize("header", FORWARDING)
def test_behind_a_proxy_a_loopback_peer_is_not_the_caller(header: str) -> None:
    # Also what an outsider sends to a server that believes every proxy: 127.0.0.1.
    refused(Access(), Caller("127.0.0.1", LOCAL | {header: "127.0.0.1"}))


def test_pages_in_a_browser_are_refused() -> None:
    refused(Access(), caller(origin="https://evil.example"))
    refused(Access(), caller(origin="null"))
    refused(Access(), caller(origin="http://localhost:8000"))
    for site in ("cross-site", "same-site", "same-origin"):
        refused(Access(), caller(sec_fetch_site=site))
    Access().admit(caller(sec_fetch_site="none"))  # typed into the address bar


@pytest.mark.parametrize(
    "host",
    ["evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "[", "10.0.0.1"],
)
def test_a_name_that_was_made_to_point_here_is_refused(host: str) -> None:
    refused(Access(), caller(host=host))


def test_with_a_token_everyone_needs_it() -> None:
    access = Access(token="s3cret")
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic s3cret"}):
        assert "s3cret" not in refused(access, caller(**headers))
        refused(access, caller("10.0.0.2", **headers))
    for who in (caller(), caller("10.0.0.2"), caller(None), caller(x_forwarded_for="8.8.8.8")):
        for value in ("Bearer s3cret", "bearer  s3cret"):
            access.admit(Caller(who.peer, {**who.headers, "authorization": value}))


def test_a_token_is_not_shown() -> None:
    assert "s3cret" not in repr(Access(token="s3cret"))


def test_empty_variables_are_not_set() -> None:
    empty = {"MOEPROF_TOKEN": " ", "MOEPROF_OUTPUT_DIR": ""}
    assert Access.from_environment(empty) == Access.from_environment({}) == Access()
    refused(Access.from_environment(empty), caller("10.0.0.2", authorization="Bearer "))


def test_local_callers_write_where_they_say(tmp_path: Path) -> None:
    assert Access().output_path(str(tmp_path / "a"), caller()) == str(tmp_path / "a")
    assert Access(folder=tmp_path).output_path("a", caller()) == str(tmp_path / "a")
    with pytest.raises(RefusedError, match="absolute") as caught:
        Access().output_path("a", caller())
    assert caught.value.status == 400


def test_others_write_below_the_operators_folder_alone(tmp_path: Path) -> None:
    remote, folder = caller("10.0.0.2"), tmp_path / "traces"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    access = Access(token="t", folder=folder)
    for inside in ("a", "b/../a", str(folder / "a")):
        assert access.output_path(inside, remote) == str(folder / "a")
    for outside in ("../a", "/etc/a", "out/a", ".", str(tmp_path / "traces2"), f"{folder}/x/../.."):
        with pytest.raises(RefusedError, match="MOEPROF_OUTPUT_DIR") as caught:
            access.output_path(outside, remote)
        assert caught.value.status == 403
    with pytest.raises(RefusedError, match="MOEPROF_OUTPUT_DIR=FOLDER"):
        Access(token="t").output_path(str(tmp_path / "a"), remote)
