"""What works here, what would stop a recording, and what to do about it."""

from moeprof.doctor.check import Check, DoctorResult
from moeprof.doctor.run import run_doctor

__all__ = ["Check", "DoctorResult", "run_doctor"]
