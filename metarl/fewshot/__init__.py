"""Supervised few-shot learning: episodes, learners that adapt to a support set, their judgement."""
