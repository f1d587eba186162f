"""What can be asked of a recording in a live server, as JSON: over HTTP or in the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from moeprof.capture.limits import Limits
from moeprof.errors import InputError

OUTPUT_VARIABLE = "MOEPROF_OUTPUT"  # records from the start of the server into this path
OPTIONS_VARIABLE = "MOEPROF_OPTIONS"  # the same JSON as over HTTP, less the output


class LiveOptions(BaseModel):
    """The body of `POST /moeprof/start`. Values are checked when it is made, by `parse`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    output: str = Field(min_length=1)  # path in the server's own file system
    max_bytes: int | None = None  # of all ranks together
    rotate: bool = False
    duration_s: float | None = None
    sample_requests: float | None = None
    seed: int = 0
    token_ids: bool = False
    aggregate_steps: int | None = Field(default=None, gt=0)
    request_names: Literal["hashed", "plain", "none"] = "hashed"
    force: bool = False

    @field_validator("output")
    @classmethod
    def _is_path(cls, output: str) -> str:
        if "\0" in output:
            raise ValueError("holds a zero byte")
        return output

    @classmethod
    def parse(cls, given: Any) -> Self:
        """The options that a JSON document gives. Raises InputError in one line."""
        if not isinstance(given, Mapping):
            raise InputError(f"options must be a JSON object, not {type(given).__name__}")
        try:
            options = cls.model_validate(given)
        except ValidationError as error:
            raise InputError(f"options: {_first(error)}") from None
        options.limits()  # its own checks
        return options

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self | None:
        """What the variables ask for; None without MOEPROF_OUTPUT. Raises InputError."""
        import json

        environment = os.environ if environment is None else environment
        output = environment.get(OUTPUT_VARIABLE)
        if not output:
            return None
        try:
            given = json.loads(environment.get(OPTIONS_VARIABLE) or "{}")
        except ValueError as error:
            raise InputError(f"{OPTIONS_VARIABLE} is no JSON: {error}") from None
        if not isinstance(given, dict):
            raise InputError(f"{OPTIONS_VARIABLE} must be a JSON object")
        if "output" in given:
            raise InputError(f"{OPTIONS_VARIABLE} names an output, that is {OUTPUT_VARIABLE}'s")
        return cls.parse({**given, "output": output})

    def limits(self, writers: int = 1) -> Limits:
        """What bounds the recording of one of `writers` ranks. Raises InputError."""
        return Limits(
            max_bytes=None if self.max_bytes is None else self.max_bytes // writers,
            rotate=self.rotate,
            duration_s=self.duration_s,
            sample_requests=self.sample_requests,
            seed=self.seed,
        )

    @property
    def path(self) -> Path:
        """Where the trace goes; absolute, as the server sees it."""
        return Path(self.output).expanduser().absolute()


def _first(error: ValidationError) -> str:
    """The first thing wrong, with the name of the option; values are not quoted."""
    found = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in found["loc"])
    return f"{where}: {found['msg']}" if where else found["msg"]
