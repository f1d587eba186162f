"""End the recording in a running server, and say what it holds."""

from __future__ import annotations

from moeprof.capture.control import CaptureStatus, stop_capture
from moeprof.cli.answer import Answer, JsonFlag, QuietFlag
from moeprof.cli.recordings import TokenFileFlag, TokenFlag, UrlFlag, read_token, status_text


def run(
    url: UrlFlag,
    token: TokenFlag = None,
    token_file: TokenFileFlag = None,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> Answer[CaptureStatus]:
    """Run the command."""
    status = stop_capture(url, token=read_token(token, token_file, url, quiet=quiet))
    return Answer(status, status_text, json)
