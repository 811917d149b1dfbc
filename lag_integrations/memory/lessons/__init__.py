"""Lessons: what several runs of one kind of task teach, distilled by a model."""
