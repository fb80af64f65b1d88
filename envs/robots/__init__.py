"""Robots that come as a model file with the functions that make a family of it."""
