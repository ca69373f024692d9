"""Conditions over the stream: the columnar evaluator and its state machine."""
