"""Helpers for test files and for the programs that tests start."""
