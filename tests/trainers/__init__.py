"""Tests with the trainers that people use; see conftest.py."""
