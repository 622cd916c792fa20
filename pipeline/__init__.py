"""Stages one and two: videos become cached tensors, cached boxes become graphs."""
