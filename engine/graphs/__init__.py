"""Neurons as graphs of what makes them fire (N2G), from what a store holds."""
